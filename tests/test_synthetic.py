"""The synthetic bins: what the demo and the other tests may rely on."""

import hashlib
import json
import re
from collections import Counter
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError
from torchvision.datasets import ImageFolder

from bincount.data import products, rendering, synthetic
from bincount.data.rendering import Item, Product
from bincount.errors import SettingsError
from flows.cli import pipeline
from flows.cli.pipeline import demo

NUM_BINS = 320
NUM_PRODUCTS = 60
RECORDS = (
    "7b25b2a57b8e8d7a86207c04fc1af39d77bf6b41a6dd27a96dc8ed38feb3fb4a"  # SHA-256 of all records, one after the other
)


@pytest.fixture(scope="module")
def bins(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bins")
    synthetic.generate(folder, NUM_BINS)
    return folder


@pytest.fixture(scope="module")
def sharing_bins(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sharing")
    synthetic.generate(folder, NUM_BINS, size=(32, 32), num_products=NUM_PRODUCTS)
    return folder


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def image_file(folder: Path, image_id: str) -> Path:
    return folder / "bin-images" / f"{image_id}.jpg"


def record_file(folder: Path, image_id: str) -> Path:
    return folder / "metadata" / f"{image_id}.json"


def good_records(folder: Path) -> dict[str, dict]:
    broken = synthetic.broken_ids(NUM_BINS)
    paths = sorted((folder / "metadata").iterdir())
    return {path.stem: json.loads(path.read_text()) for path in paths if path.stem not in broken}


def contents(record: dict) -> Counter:
    return Counter({asin: item["quantity"] for asin, item in record["BIN_FCSKU_DATA"].items()})


def twins(records: dict[str, dict]) -> list[tuple[Counter, Counter]]:
    """The contents of neighbours that share a product; ids of another series, without zeros, have no neighbours."""
    padded = {image_id: record for image_id, record in records.items() if len(image_id) == 5}
    pairs = ((contents(record), padded.get(f"{int(image_id) + 1:05d}")) for image_id, record in padded.items())
    pairs = ((before, contents(after)) for before, after in pairs if after)
    return [(before, after) for before, after in pairs if before & after]


@pytest.mark.parametrize("num_products", [None, NUM_PRODUCTS])
def test_drawing_more_bins_leaves_the_earlier_ones_as_they_were(tmp_path, num_products):
    synthetic.generate(tmp_path / "at once", 100, num_products=num_products)
    synthetic.generate(tmp_path / "night by night", 45, num_products=num_products)
    first = digests(tmp_path / "night by night")
    synthetic.generate(tmp_path / "night by night", 55, start=46, num_products=num_products)
    grown = digests(tmp_path / "night by night")
    assert grown == digests(tmp_path / "at once")
    assert first.items() < grown.items()


@pytest.mark.parametrize("num_products", [None, NUM_PRODUCTS])
def test_another_seed_draws_other_bins_under_the_same_ids(tmp_path, num_products):
    for seed in (0, 1):
        synthetic.generate(tmp_path / str(seed), 10, seed=seed, num_products=num_products)
    one, other = digests(tmp_path / "0"), digests(tmp_path / "1")
    assert one.keys() == other.keys()
    assert not set(one.values()) & set(other.values())


def test_files_that_are_there_already_are_kept(tmp_path):
    synthetic.generate(tmp_path, 3)
    image_file(tmp_path, "00002").write_bytes(b"mine")
    synthetic.generate(tmp_path, 5)
    assert image_file(tmp_path, "00002").read_bytes() == b"mine"
    assert image_file(tmp_path, "00005").exists()


def test_the_recorded_quantity_is_the_sum_over_the_products(bins):
    for record in good_records(bins).values():
        assert record["EXPECTED_QUANTITY"] == contents(record).total()


def test_every_class_is_well_represented_and_some_bins_hold_more(bins):
    counts = Counter(record["EXPECTED_QUANTITY"] for record in good_records(bins).values())
    labelled = sum(counts[quantity] for quantity in range(6))
    assert all(0.02 < counts[quantity] / labelled < 0.3 for quantity in range(6))
    assert 0.02 < 1 - labelled / counts.total() < 0.1


def test_pictures_have_the_size_that_was_asked_for(tmp_path):
    synthetic.generate(tmp_path, 2, size=(120, 90))
    assert Image.open(image_file(tmp_path, "00001")).size == (120, 90)


@pytest.mark.parametrize("source", ["bins", "sharing_bins"])
def test_neighbours_often_show_one_bin_and_never_the_same_contents(request, source):
    records = good_records(request.getfixturevalue(source))
    pairs = twins(records)
    assert 0.35 < len(pairs) / len(records) < 0.65
    for before, after in pairs:
        assert abs(before.total() - after.total()) == 1
        assert before < after or after < before


def test_the_pictures_of_neighbours_are_more_alike_than_those_of_strangers(bins):
    def difference(one: str, other: str) -> float:
        thumbnails = [Image.open(image_file(bins, image_id)).convert("HSV").resize((8, 8)) for image_id in (one, other)]
        hues = [thumbnail.getchannel("H").tobytes() for thumbnail in thumbnails]
        return sum(abs(a - b) for a, b in zip(*hues, strict=True))

    records = good_records(bins)
    alike, unlike = [], []
    for image_id in records:
        neighbour = f"{int(image_id) + 1:05d}"
        if neighbour in records:
            shares = contents(records[image_id]) & contents(records[neighbour])
            (alike if shares else unlike).append(difference(image_id, neighbour))
    assert sorted(alike)[len(alike) // 2] < sorted(unlike)[len(unlike) // 2]


def test_some_ids_are_unpadded_and_name_other_bins_than_their_padded_namesakes(bins):
    records = good_records(bins)
    assert records["1"]["image_fname"] == "1.jpg"
    assert "image_fname" not in records["00001"]
    assert all("normalizedName" not in item for item in records["1"]["BIN_FCSKU_DATA"].values())
    assert records["1"]["BIN_FCSKU_DATA"] != records["00001"]["BIN_FCSKU_DATA"]
    assert not record_file(bins, "00040").exists()


def test_some_names_and_weights_are_unknown(bins):
    products = [item for record in good_records(bins).values() for item in record["BIN_FCSKU_DATA"].values()]
    assert any(product["name"] is None for product in products)
    assert any(product["weight"] is None for product in products)


def test_every_kind_of_broken_object_is_there_and_is_what_it_is_called(bins):
    ids = {fault: image_id for image_id, fault in synthetic.broken_ids(NUM_BINS).items()}
    assert set(ids) == set(synthetic.BROKEN.values())

    def quantity(fault: str):
        return json.loads(record_file(bins, ids[fault]).read_text()).get("EXPECTED_QUANTITY")

    assert not record_file(bins, ids["image without record"]).exists()
    assert not image_file(bins, ids["record without image"]).exists()
    with pytest.raises(json.JSONDecodeError):
        quantity("malformed record")
    assert quantity("quantity missing") is None
    assert quantity("quantity negative") < 0
    assert isinstance(quantity("quantity as text"), str)
    with pytest.raises(OSError, match="truncated"):
        Image.open(image_file(bins, ids["image truncated"])).load()
    for fault in ("image is a web page", "image empty"):
        with pytest.raises(UnidentifiedImageError):
            Image.open(image_file(bins, ids[fault]))


def test_a_copy_has_another_bins_picture_and_record(bins):
    copy = next(image_id for image_id, fault in synthetic.broken_ids(NUM_BINS).items() if fault == "copy")
    original = f"{int(copy) - synthetic.COPY_DISTANCE:05d}"
    assert original not in synthetic.broken_ids(NUM_BINS)
    assert image_file(bins, copy).read_bytes() == image_file(bins, original).read_bytes()
    assert record_file(bins, copy).read_bytes() == record_file(bins, original).read_bytes()


def test_without_broken_objects_every_bin_has_a_record_and_a_picture_that_loads(tmp_path):
    synthetic.generate(tmp_path, 5, start=10, broken=False)
    assert len(list((tmp_path / "metadata").iterdir())) == 5
    for path in (tmp_path / "bin-images").iterdir():
        Image.open(path).load()


def test_drawn_cartons_are_read_as_one_folder_a_class(tmp_path):
    synthetic.generate_folders(tmp_path, 12)
    cartons = ImageFolder(tmp_path)
    assert cartons.classes == ["defective", "good"]
    assert Counter(cartons.targets) == {0: 4, 1: 8}
    image, _ = cartons[0]
    assert image.size == (160, 160)


def test_the_records_are_those_of_earlier_releases(bins):
    paths = sorted((bins / "metadata").iterdir())
    assert hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest() == RECORDS


def test_bins_that_share_a_catalogue_hold_the_same_products_again_under_the_same_ids(sharing_bins):
    shown = {product.asin: product for product in products.catalogue(NUM_PRODUCTS)}
    num_bins = Counter()
    for record in good_records(sharing_bins).values():
        num_bins.update(record["BIN_FCSKU_DATA"].keys())
        for asin, entry in record["BIN_FCSKU_DATA"].items():
            assert entry["name"] == shown[asin].name
    assert num_bins.keys() == shown.keys()
    assert sorted(num_bins.values())[NUM_PRODUCTS // 2] >= 8


def test_a_product_of_a_catalogue_is_often_in_a_bin_twice_or_three_times(sharing_bins):
    records = good_records(sharing_bins).values()
    quantities = Counter(number for record in records for number in contents(record).values())
    assert quantities[1] < 0.6 * quantities.total()
    assert quantities[2] > 0.25 * quantities.total()
    assert quantities[3] > 0.05 * quantities.total()


def test_a_larger_catalogue_begins_with_the_smaller_one_and_another_seed_has_other_products():
    assert products.catalogue(100)[:NUM_PRODUCTS] == products.catalogue(NUM_PRODUCTS)
    assert not set(products.catalogue(100, seed=1)) & set(products.catalogue(100))


def test_products_of_a_catalogue_are_told_apart_in_pictures_of_64_pixels_in_another_light():
    def colours(product: Product, camera: str) -> np.ndarray:
        """What stands in the middle of a pod, without its brightness."""
        photo = rendering.bin_photo(f"{camera} {product.asin}", [Item(product, 160, 270, 0)], camera, (64, 64))
        pixels = np.asarray(Image.open(BytesIO(photo)).crop((18, 16, 46, 58)), float)
        return pixels / (pixels.sum(axis=2, keepdims=True) + 20)

    catalogue = products.catalogue(40)
    asked, known = (np.stack([colours(product, camera) for product in catalogue]) for camera in ("one", "other"))
    differences = ((asked[:, None] - known) ** 2).sum(axis=(2, 3, 4))
    assert (differences.argmin(axis=1) == np.arange(40)).mean() > 0.8


@pytest.mark.parametrize("num_products", [0, products.FEWEST_PRODUCTS - 1, products.MOST_PRODUCTS + 1])
def test_a_catalogue_that_is_too_small_or_too_large_is_refused_before_anything_is_written(tmp_path, num_products):
    with pytest.raises(SettingsError, match="give 20 to 300"):
        synthetic.generate(tmp_path / "bins", 3, num_products=num_products)
    assert not (tmp_path / "bins").exists()


@pytest.mark.parametrize(("before", "after"), [(100, 50), (None, 50), (100, None)])
def test_bins_of_another_catalogue_are_not_mixed_with_those_in_the_folder(tmp_path, before, after):
    folder = tmp_path / "demo" / "bucket"
    synthetic.generate(folder, 12, size=(32, 32), num_products=before)
    written = {path: path.read_bytes() for path in folder.rglob("*.*")}
    with pytest.raises(SettingsError, match="give another folder, or --products as before"):
        synthetic.generate(folder, 12, size=(32, 32), start=13, num_products=after)
    with pytest.raises(SettingsError, match="bucket has bins with other items"):
        demo(products=after, folder=tmp_path / "demo")
    assert {path: path.read_bytes() for path in folder.rglob("*.*")} == written


def test_more_bins_of_the_same_catalogue_join_those_in_the_folder_though_a_record_was_edited(tmp_path):
    synthetic.generate(tmp_path, 12, size=(32, 32), num_products=100)
    (tmp_path / "metadata" / "00002.json").write_text("{}")
    synthetic.generate(tmp_path, 12, size=(32, 32), start=13, num_products=100)
    assert len(list((tmp_path / "metadata").iterdir())) == 23  # and one of the 24 is broken


@pytest.mark.parametrize("given", [{"products": 50}, {"task": "object"}])
def test_boxes_have_no_products_to_share(tmp_path, given):
    with pytest.raises(SettingsError, match="leave them out"):
        demo(problem="boxes", **given, folder=tmp_path / "demo")
    assert not (tmp_path / "demo").exists()


def test_a_demo_of_questions_is_of_bins_that_share_products(tmp_path, monkeypatch):
    asked = {}
    monkeypatch.setattr(pipeline, "run", lambda **settings: asked.update(settings))
    demo(task="object", bins=300, folder=tmp_path)

    assert (asked["training"].task, asked["workspace"]) == ("object", tmp_path)
    records = (tmp_path / "bucket" / "metadata").glob("*.json")
    in_bins = [set(re.findall(r'"asin": "(\w+)"', path.read_text())) for path in records]
    assert len(set.union(*in_bins)) == 20 < sum(map(len, in_bins))
