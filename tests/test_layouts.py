"""Tests of detecting the layout of a source, and of the errors where it has none."""

from pathlib import Path

import pytest
from bins import add_bin, bring, jpeg, record
from faulty_s3 import FaultyS3

from bincount.data import assembly, bins, source
from bincount.errors import DatasetError, SettingsError, SourceError
from bincount.problem import Classes
from bincount.settings import DataConfig
from bincount.workspace import Workspace
from tasks.data import freeze_snapshot

SPLITS = {"train": 8, "val": 3, "test": 3}


def write(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(record(1) if name.endswith(".json") else jpeg(number))


def layout_of(folder: Path) -> str:
    """The layout of a folder, and of a bucket with the same names, which are one."""
    objects = {path.relative_to(folder).as_posix(): b"x" for path in folder.rglob("*") if path.is_file()}
    found, errors = [], []
    with FaultyS3(objects) as server:
        for config in (DataConfig(source=str(folder)), server.config()):
            try:
                found.append(source.open_source(config).layout)
            except SourceError as error:
                errors.append(str(error).replace(config.source, "SOURCE"))
    if errors:
        assert errors == [errors[0]] * 2
        raise SourceError(errors[0])
    assert found == [found[0]] * 2
    return found[0]


def split_folders(folder: Path, names=SPLITS, classes=("intact", "damaged")) -> Path:
    write(folder, *(f"{split}/{name}/{n}.jpg" for split in names for name in classes for n in range(SPLITS["train"])))
    return folder


@pytest.mark.parametrize(
    ("names", "layout"),
    [
        (["bin-images/1.jpg", "metadata/1.json"], "bins"),
        (["bin-images/1.jpg", "metadata/1.json", "train/a/1.jpg", "docs/x.txt"], "bins"),
        (["good/1.jpg", "bad/1.jpg"], "folders"),
        (["good/deep/1.jpg", "bad/1.tif", ".git/x", "__MACOSX/good/._1.jpg", "labels.csv"], "folders"),
        (["train/1.jpg", "bus/1.jpg"], "folders"),
        (["train/good/1.jpg", "train/bad/1.jpg", "val/good/1.jpg", "test/bad/1.jpg"], "splits"),
        (["Train/good/1.jpg", "Test/bad/1.jpg", "docs/readme.txt"], "splits"),
        (["training/a/1.jpg", "validation/b/1.jpg", "dev/b/2.jpg", "testing/1.jpg"], "splits"),
    ],
)
def test_a_layout_is_recognised_by_its_names_in_a_folder_and_in_a_bucket(tmp_path, names, layout):
    write(tmp_path, *names)
    assert layout_of(tmp_path) == layout


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (
            ["images/1.jpg", "images/2.jpg", "metadata/1.json", "metadata/2.json"],
            r"holds images/ with pictures and metadata/ with files of the same names \(2 were seen\); the layout with "
            r"records is bin-images/ID.jpg and metadata/ID.json: rename or link images/ as bin-images/",
        ),
        (["imgs/a.png", "json/a.json", "README.md"], "imgs/ with pictures and json/ with files of the same names"),
        (["pics/a.jpg", "annotations/a.xml", "other/x.txt"], "pics/ with pictures and annotations/"),
        (["train/images/a.jpg", "train/labels/a.txt", "val/images/b.jpg"], "SOURCE/train holds images/ with pictures"),
        (["1.jpg", "1.json", "2.jpg"], r"side by side \(1 pairs were seen\).* put the pictures into bin-images/"),
        (["1.jpg", "2.jpg"], "holds pictures and no folders, so that they have no class or record"),
        (
            ["dataset/bin-images/1.jpg", "dataset/metadata/1.json"],
            r"\(bin-images/ and metadata/\): give .* SOURCE/datas",
        ),
        (["data/good/1.jpg", "data/bad/1.jpg"], r"one folder, data/, .* --source SOURCE/data"),
        (["good/1.jpg"], "one class folder, good/, and at least two classes are needed"),
        (
            ["train/1.jpg", "test/1.jpg"],
            "holds test/ and train/ without class folders in them; the layout is train/CLASS",
        ),
        (["train/a/1.jpg", "val/a/1.jpg", "spare/1.jpg"], "beside them spare/; pass --layout splits"),
        (["train/bin-images/1.jpg", "test/bin-images/2.jpg"], "--source SOURCE/test"),
        (["notes.txt"], "neither bin-images/ nor class folders"),
    ],
)
def test_what_fits_no_layout_is_refused_in_words_on_what_was_found_and_what_to_write(tmp_path, names, words):
    write(tmp_path, *names)
    with pytest.raises(SourceError, match=words):
        layout_of(tmp_path)


def test_folders_of_splits_are_one_pool_whose_ids_are_keys(tmp_path):
    write(tmp_path / "source", *(f"{split}/{name}/1.jpg" for split in ("train", "Valid", "test") for name in "ab"))
    assert bring(tmp_path / "source", tmp_path / "data").num_fetched == 6
    rows = bins.read(tmp_path / "data").set_index("image_id")
    assert list(rows.index) == [f"{split}/{name}/1.jpg" for split in ("Valid", "test", "train") for name in "ab"]
    assert rows["class_name"].to_list() == ["a", "b"] * 3
    assert rows["dhash"].notna().all()


def kept(folder: Path, dataset: Path):
    config = DataConfig(source=str(folder), classes="intact,damaged", keep_splits=True)
    bring(folder, dataset, config)
    return freeze_snapshot.fn(config, dataset).read().set_index("image_id")


def test_given_splits_are_taken_and_stay_as_the_source_grows(tmp_path):
    split_folders(tmp_path / "source")
    rows = kept(tmp_path / "source", tmp_path / "data")
    assert (rows["split"] == rows.index.str.split("/").str[0]).all()
    assert rows["split"].value_counts().to_dict() == {"train": 16, "val": 16, "test": 16}
    write(tmp_path / "source", *(f"test/intact/new{number}.jpg" for number in range(3)))
    (tmp_path / "source" / "test" / "intact" / "new0.jpg").write_bytes(jpeg(77))
    grown = kept(tmp_path / "source", tmp_path / "data")
    assert grown.loc[rows.index, "split"].equals(rows["split"])
    assert grown.loc["test/intact/new0.jpg", "split"] == "test"


def test_bins_that_given_splits_share_are_reported_and_left_as_they_are(tmp_path, caplog):
    folder = tmp_path / "source"
    for number, split in enumerate(["train"] * 5 + ["val"] * 3 + ["test"] * 3):
        for offset, name in enumerate(("intact", "damaged")):
            path = folder / split / name / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(2 * number + offset))
    (folder / "test" / "intact" / "8.jpg").write_bytes((folder / "train" / "intact" / "0.jpg").read_bytes())
    rows = kept(folder, tmp_path / "data")
    assert (rows["split"] == rows.index.str.split("/").str[0]).all()
    assert "2 images show 1 picture that the given splits share, such as test/intact/8.jpg and train/intact/0.jpg" in (
        caplog.text
    )


def test_a_picture_that_was_moved_to_another_split_folder_is_in_that_split_alone(tmp_path):
    folder = tmp_path / "source"
    for number, split in enumerate(["train"] * 5 + ["val"] * 3 + ["test"] * 3):
        for offset, name in enumerate(("intact", "damaged")):
            write(folder, f"{split}/{name}/{number}.jpg")
            (folder / split / name / f"{number}.jpg").write_bytes(jpeg(2 * number + offset))
    kept(folder, tmp_path / "data")
    (folder / "train" / "intact" / "0.jpg").rename(folder / "test" / "intact" / "0.jpg")
    rows = kept(folder, tmp_path / "data")
    assert rows.loc["test/intact/0.jpg", "split"] == "test"
    assert rows.loc["train/intact/0.jpg", "reason"] == "moved in the source"


def test_splits_that_are_not_all_given_cannot_be_kept(tmp_path):
    split_folders(tmp_path / "source", ("train", "test"))
    with pytest.raises(DatasetError, match=r"gives no val images of the classes; .* leave --keep-splits out"):
        kept(tmp_path / "source", tmp_path / "data")


def test_a_source_without_split_folders_has_no_splits_to_keep(tmp_path):
    add_bin(tmp_path, "00001")
    with pytest.raises(SettingsError, match="--keep-splits needs folders train/, val/ and test/ above the classes"):
        source.open_source(DataConfig(source=str(tmp_path), keep_splits=True))


def test_a_dataset_with_given_splits_is_another_than_the_pool(tmp_path):
    pool, given = (DataConfig(source=str(tmp_path), keep_splits=keep) for keep in (False, True))
    assert Workspace().dataset(pool) != Workspace().dataset(given)


def test_the_pool_gets_splits_of_its_own_by_bin(tmp_path):
    split_folders(tmp_path / "source")
    bring(tmp_path / "source", tmp_path / "data")
    rows = bins.read(tmp_path / "data")
    rows = assembly.build(tmp_path / "data", rows, Classes.parse("intact,damaged"), "x").read()
    assert set(rows["split"]) == {"train", "val", "test"}
    assert (rows.groupby("group")["split"].nunique() == 1).all()
    assert (rows["split"] != rows["image_id"].str.split("/").str[0]).any()
