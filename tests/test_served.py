"""A registered model behind MLflow's model server, here and in an environment made from its own requirements."""

import base64
import json
import os
import re
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.error import HTTPError

import pandas as pd
import pytest
import servers
import torch
from bins import jpeg, png

from bincount.problem import Classes
from bincount.settings import ImageConfig, RegistryConfig, TrainConfig
from bincount.tracking import connection, pyfunc
from bincount.training import model as models
from bincount.training.spec import ModelSpec

# A fresh environment is linked from uv's cache in half a minute; where the cache lacks torch, gigabytes come first.
INSTALLATION = 900
pytestmark = [pytest.mark.services, pytest.mark.timeout(INSTALLATION + 300)]

PICTURES = [base64.b64encode(jpeg(seed)).decode() for seed in (0, 1)]
FORMS = {
    "dataframe_split": {"columns": ["image"], "data": [[picture] for picture in PICTURES]},
    "dataframe_records": [{"image": picture} for picture in PICTURES],
    "inputs": {"image": PICTURES},
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    training = TrainConfig(model="small", weights="none")
    spec = ModelSpec.make(ImageConfig(image_size=32), training, Classes.parse("0..2"))
    folder = tmp_path_factory.mktemp("checkpoint")
    models.save(folder, models.build(spec), spec)
    return folder


@pytest.fixture(scope="module")
def registered(checkpoint, tmp_path_factory) -> Iterator[tuple[str, str]]:
    """The URL of an MLflow server whose champion is the checkpoint, and the champion's URI there."""
    folder = tmp_path_factory.mktemp("mlflow")
    with servers.mlflow_server(folder) as url:
        opened = connection.open_registry(url, folder, RegistryConfig())
        version = opened.register(opened.runs.start("served", {}, {}), checkpoint, "a model", {}, jpeg())
        opened.promote(version, None, by="a test", reason="the first")
        yield url, f"models:/{version.name}@champion"


@pytest.fixture(scope="module", params=["local", "uv"])
def address(request, registered, tmp_path_factory) -> Iterator[str]:
    """The address at which the model predicts, served from the environment of the tests or from one of its own."""
    tracking_uri, model_uri = registered
    port = str(servers.free_port())
    command = [servers.program("mlflow"), "models", "serve", "--model-uri", model_uri]
    command += ["--env-manager", request.param, "--host", "127.0.0.1", "--port", port]
    log = tmp_path_factory.mktemp(request.param) / "serve.log"
    # Not in pytest's folders, which outlive the tests: an environment with torch is large.
    with TemporaryDirectory(prefix="served-") as folder:
        environment = os.environ | {
            "MLFLOW_TRACKING_URI": tracking_uri,
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_ENV_ROOT": f"{folder}/environments",
            "TMPDIR": folder,  # for the model's files, which stay when the server is stopped
            "UV_PYTHON_DOWNLOADS": "never",
            "PATH": os.pathsep.join([str(Path(command[0]).parent), os.environ["PATH"]]),  # which has uv
        }
        environment.pop("PYTHONPATH", None)
        with servers.running(command, environment, log, f"http://127.0.0.1:{port}/health", INSTALLATION):
            installed = list(Path(folder).glob("environments/*/lib/*/site-packages/*"))
            assert bool(installed) == (request.param == "uv")
            assert not [path for path in installed if "bincount" in path.name]  # the version brings its own copy
            yield f"http://127.0.0.1:{port}/invocations"


def ask(address: str, body: dict) -> tuple[int, dict]:
    """Post a request; the status and the answer."""
    request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except HTTPError as error:
        return error.code, json.load(error)


@pytest.mark.parametrize("form", FORMS)
def test_a_served_model_answers_as_the_checkpoint_does(address, checkpoint, form):
    counter = pyfunc.CountModel()
    counter.load(checkpoint)
    expected = counter.predict(None, pd.DataFrame({"image": PICTURES}))

    status, answer = ask(address, {form: FORMS[form]})

    assert status == 200
    counted = pd.DataFrame(answer["predictions"])
    assert {"count", "expected_count", "p_0", "p_1", "p_2"} <= set(counted)
    pd.testing.assert_frame_equal(counted, expected, check_dtype=False, rtol=1e-4)


def test_a_served_model_reads_data_urls(address):
    records = [{"image": PICTURES[0]}, {"image": f"data:image/jpeg;base64,{PICTURES[0]}"}]

    status, answer = ask(address, {"dataframe_records": records})

    assert status == 200
    assert answer["predictions"][0] == answer["predictions"][1]


def test_the_request_that_the_pages_show_is_answered(address, tmp_path):
    servers.installed("curl", "curl")
    page = Path(__file__).parent.parent / "docs" / "pages" / "registry.md"
    command = next(block for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL) if "curl" in block)
    (tmp_path / "photo1.jpg").write_bytes(jpeg(0))

    typed = command.replace("http://127.0.0.1:5001/invocations", address)
    done = subprocess.run(["sh", "-c", typed], cwd=tmp_path, capture_output=True, text=True, check=True)

    assert typed != command
    assert {"count", "expected_count", "p_0"} <= set(json.loads(done.stdout)["predictions"][0])


def test_a_path_is_refused_alike_whether_it_exists_or_not(address, tmp_path):
    here, gone = tmp_path / "seen1.jpg", tmp_path / "seen2.jpg"
    here.write_bytes(jpeg())

    answers = [ask(address, {"dataframe_records": [{"image": str(path)}]}) for path in (here, gone)]

    assert [status for status, _ in answers] == [400, 400]
    told = [
        answer["message"].replace(path.stem, "NAME") for (_, answer), path in zip(answers, (here, gone), strict=True)
    ]
    assert told[0] == told[1]
    assert "paths are not opened here" in told[0]


@pytest.mark.parametrize(
    "bad",
    ["/9j/" + "A" * 1000, "no such file.jpg", base64.b64encode(png(13_000, 13_000)).decode()],
    ids=["damaged", "no file", "too many pixels"],
)
def test_a_row_that_is_no_picture_is_a_bad_request_that_names_it(address, bad):
    records = [{"image": PICTURES[0]}, {"image": bad}]

    status, answer = ask(address, {"dataframe_records": records})

    assert status == 400
    assert "row 1 is not a picture" in answer["message"]
    assert "send a JPEG or PNG" in answer["message"]


def test_a_request_without_pictures_is_a_bad_request_that_names_the_column(address):
    status, answer = ask(address, {"dataframe_records": [{"photo": PICTURES[0]}]})

    assert status == 400
    assert "image" in answer["message"]
