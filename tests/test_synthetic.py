"""The synthetic bins: what the demo and the other tests may rely on."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image, UnidentifiedImageError
from torchvision.datasets import ImageFolder

from bincount.data import synthetic

NUM_BINS = 320


@pytest.fixture(scope="module")
def bins(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bins")
    synthetic.generate(folder, NUM_BINS)
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
    """The contents of neighbours that share a product."""
    pairs = ((contents(record), records.get(f"{int(image_id) + 1:05d}")) for image_id, record in records.items())
    pairs = ((before, contents(after)) for before, after in pairs if after)
    return [(before, after) for before, after in pairs if before & after]


def test_drawing_more_bins_leaves_the_earlier_ones_as_they_were(tmp_path):
    synthetic.generate(tmp_path / "at once", 100)
    synthetic.generate(tmp_path / "night by night", 45)
    first = digests(tmp_path / "night by night")
    synthetic.generate(tmp_path / "night by night", 55, start=46)
    grown = digests(tmp_path / "night by night")
    assert grown == digests(tmp_path / "at once")
    assert first.items() < grown.items()


def test_another_seed_draws_other_bins_under_the_same_ids(tmp_path):
    for seed in (0, 1):
        synthetic.generate(tmp_path / str(seed), 10, seed=seed)
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


def test_neighbours_often_show_one_bin_and_never_the_same_contents(bins):
    records = good_records(bins)
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
