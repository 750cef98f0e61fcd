"""Tests of the pictures that the model as MLflow serves it takes, and of those that it refuses."""

import base64
import io
import struct
from pathlib import Path
from urllib.parse import quote_from_bytes

import numpy as np
import pandas as pd
import pytest
import torch
from bins import jpeg, png
from mlflow.exceptions import MlflowException
from PIL import Image, ImageFile

from bincount.problem import Classes
from bincount.settings import ImageConfig, TrainConfig
from bincount.tracking import packaging, pyfunc
from bincount.training import model as models
from bincount.training.spec import ModelSpec

PICTURE = jpeg(1)
TEXT = base64.b64encode(PICTURE).decode()


@pytest.fixture(scope="module")
def counter(tmp_path_factory) -> pyfunc.CountModel:
    torch.manual_seed(0)
    training = TrainConfig(model="small", weights="none")
    spec = ModelSpec.make(ImageConfig(image_size=32), training, Classes.parse("0..2"))
    folder = tmp_path_factory.mktemp("checkpoint")
    models.save(folder, models.build(spec), spec)
    loaded = pyfunc.CountModel()
    loaded.load(folder)
    return loaded


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    for name in pyfunc.PATHS_ALLOWED:
        monkeypatch.delenv(name, raising=False)


def ask(counter: pyfunc.CountModel, *values: object, params: dict | None = None) -> pd.DataFrame:
    return counter.predict(None, pd.DataFrame({"image": values}, dtype=object), params)


def refusal(counter: pyfunc.CountModel, value: object, params: dict | None = None) -> str:
    """Why the second of three rows is refused."""
    with pytest.raises(MlflowException) as caught:
        ask(counter, TEXT, value, TEXT, params=params)
    assert caught.value.get_http_status_code() == 400
    return str(caught.value)


FORMS = {
    "bytes": PICTURE,
    "base64": TEXT,
    "base64 in lines": "\n".join(TEXT[start : start + 76] for start in range(0, len(TEXT), 76)),
    "a data: URL": f"data:image/jpeg;base64,{TEXT}",
    "a data: URL with parameters": f"DATA:image/jpeg;name=a.jpg;BASE64,{TEXT}",
    "a data: URL of another type": f"data:;base64,{TEXT}",
    "a data: URL with escapes": f"data:image/jpeg;base64,{TEXT.replace('+', '%2B').replace('/', '%2F')}",
    "a data: URL without base64": f"data:image/jpeg,{quote_from_bytes(PICTURE)}",
}


@pytest.mark.parametrize("is_served", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_a_picture_counts_the_same_in_every_form(counter, monkeypatch, form, is_served):
    if is_served:
        monkeypatch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")
    pd.testing.assert_frame_equal(ask(counter, FORMS[form]), ask(counter, PICTURE))


def test_a_path_is_opened_where_no_server_asks_for_others(counter, tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(PICTURE)
    pd.testing.assert_frame_equal(ask(counter, str(path)), ask(counter, PICTURE))
    assert "row 1 is not a picture (neither base64 nor a file: " in refusal(counter, str(tmp_path / "gone.jpg"))


SERVED = [
    ("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true"),
    ("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "True"),
    ("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "1"),
    ("BINCOUNT_ALLOW_PATHS", "0"),
    ("BINCOUNT_ALLOW_PATHS", "false"),
    ("BINCOUNT_ALLOW_PATHS", " 0 "),
    ("BINCOUNT_ALLOW_PATHS", "n"),
    ("BINCOUNT_ALLOW_PATHS", "disabled"),
]


@pytest.mark.parametrize(("name", "value"), SERVED)
@pytest.mark.parametrize("form", ["{}", "file://{}", "data:image/jpeg,{}", "data:{}"])
def test_where_a_server_asks_no_path_is_opened_and_none_is_revealed(counter, monkeypatch, tmp_path, name, value, form):
    monkeypatch.chdir(tmp_path)  # whose name is longer than what an answer repeats of a value
    here, gone, folder = Path("a_photo.jpg"), Path("b_photo.jpg"), Path("c_photo.jpg")
    here.write_bytes(PICTURE)
    folder.mkdir()
    monkeypatch.setenv(name, value)
    monkeypatch.setenv("BINCOUNT_ALLOW_PATHS" if name.startswith("_") else "_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "")
    answers = {refusal(counter, form.format(path)).replace(path.name, "NAME") for path in (here, gone, folder)}
    (answer,) = answers
    assert "row 1 is not a picture" in answer
    assert "or its path" not in answer


@pytest.mark.parametrize("params", [{"allow_paths": True}, {"BINCOUNT_ALLOW_PATHS": "1"}])
def test_no_request_decides_whether_paths_are_opened(counter, monkeypatch, tmp_path, params):
    path = tmp_path / "photo.jpg"
    path.write_bytes(PICTURE)
    monkeypatch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")
    assert "paths are not opened here" in refusal(counter, str(path), params)


def test_what_a_server_allows_to_itself_does_not_open_paths_where_mlflow_serves(counter, monkeypatch, tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(PICTURE)
    monkeypatch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")
    monkeypatch.setenv("BINCOUNT_ALLOW_PATHS", "1")
    assert "paths are not opened here" in refusal(counter, str(path))


def test_mlflows_own_rehearsal_of_a_server_counts_as_one(counter, tmp_path):
    from mlflow.pyfunc.utils.environment import _simulate_serving_environment

    path = tmp_path / "photo.jpg"
    path.write_bytes(PICTURE)
    with _simulate_serving_environment():
        assert "paths are not opened here" in refusal(counter, str(path))


def palette_png() -> bytes:
    file = io.BytesIO()
    Image.new("P", (16, 16)).save(file, "PNG")
    return file.getvalue()


BAD = {
    "a bomb": (png(13_000, 13_000), "too many pixels: 13000 x 13000, and at most 50,000,000 are read"),
    "cut off": (PICTURE[:-300], "damaged image: "),
    "with a hole": (PICTURE[:-300] + b"\xff\xd9", "damaged image: "),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", "not an image: begins with "),
    "a texture": (b"DDS " + struct.pack("<I", 124) + bytes(140), "not an image: begins with "),
    "empty": (b"", "empty image"),
    "a number": (7, "got int"),
    "nothing": (None, "got NoneType"),
    "a list": ([1, 2], "got list"),
    "a data: URL without a comma": ("data:image/jpeg;base64", "a data: URL without a comma"),
    "a data: URL that is none": ("data:image/jpeg;base64,***", "a data: URL without base64: "),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_no_picture_is_a_bad_request_that_names_the_row(counter, monkeypatch, what):
    value, reason = BAD[what]
    monkeypatch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")
    words = refusal(counter, value)
    assert f"row 1 is not a picture ({reason}" in words
    assert words.endswith("; send a JPEG or PNG file as bytes, as base64 text or as a data: URL")


def test_a_bomb_is_refused_before_it_is_decoded(counter, monkeypatch):
    def load(*_):
        raise AssertionError("decoded")

    bomb = png(13_000, 13_000)
    assert len(bomb) < 30_000
    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    assert "too many pixels" in refusal(counter, base64.b64encode(bomb).decode())


@pytest.mark.parametrize("error", [NotImplementedError(), RuntimeError("fell over"), KeyError("mode")])
def test_whatever_a_decoder_raises_is_a_bad_request(counter, monkeypatch, error):
    def load(*_):
        raise error

    picture = palette_png()
    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    assert "row 1 is not a picture (damaged image: " in refusal(counter, picture)


def test_pictures_are_seen_as_they_were_packed(counter):
    """Upright, scaled and without what transparency hides."""
    deep = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    shown = Image.fromarray(np.round(deep / 257).astype(np.uint8))
    exif = Image.Exif()
    exif[274] = 6
    files = []
    for image, settings in ((Image.fromarray(deep), {}), (shown.transpose(Image.Transpose.ROTATE_90), {"exif": exif})):
        file = io.BytesIO()
        image.save(file, "PNG", **settings)
        files.append(file.getvalue())
    table = ask(counter, *files)
    pd.testing.assert_series_equal(table.loc[0], table.loc[1], check_names=False, rtol=1e-4)


def test_a_version_needs_what_reads_its_pictures():
    assert {"pillow", "simplejpeg"} <= set(packaging.INFERENCE_PACKAGES)
    pins = packaging.pin(packaging.INFERENCE_PACKAGES)
    assert any(pin.startswith("simplejpeg==") for pin in pins)
