"""Tests of packing: which images of a dataset are packed, and where the files go that cannot be."""

import pytest
from bins import add_bin, bring, undecodable_jpeg

from bincount.data import assembly, bins, packing, packs
from bincount.problem import Classes
from bincount.settings import DataConfig, ImageConfig

SMALL = ImageConfig(image_size=32)


@pytest.fixture
def source(tmp_path):
    for number in range(4):
        add_bin(tmp_path / "source", f"{number:05d}", number)
    return tmp_path / "source"


def config(source, **settings):
    return DataConfig(source=str(source), **settings)


def test_images_of_the_classes_and_the_extra_counts_are_packed_and_no_others(source, tmp_path):
    bring(source, tmp_path / "data")
    pack = packing.pack_fetched(tmp_path / "data", SMALL, config(source, classes="0..1", extra_counts=2))
    rows = bins.read(tmp_path / "data")
    assert len(pack) == 3
    assert len(pack.locate(rows.loc[rows["quantity"] <= 2, "sha256"])) == 3


def test_an_image_that_does_not_decode_is_quarantined_and_the_others_are_packed(source, tmp_path):
    add_bin(source, "00009", image=undecodable_jpeg())
    bring(source, tmp_path / "data")
    assert len(packing.pack_fetched(tmp_path / "data", SMALL, config(source))) == 4
    row = bins.read(tmp_path / "data").set_index("image_id").loc["00009"]
    assert row["status"] == "quarantined"
    assert bins.reason_kind(row["reason"]) == "damaged image"
    assert not (tmp_path / "data" / "originals" / "bin-images" / "00009.jpg").exists()


def test_an_image_that_was_lost_on_disk_is_forgotten_and_fetched_again(source, tmp_path, caplog):
    bring(source, tmp_path / "data")
    lost = tmp_path / "data" / "originals" / "bin-images" / "00002.jpg"
    lost.unlink()
    assert len(packing.pack_fetched(tmp_path / "data", SMALL, config(source))) == 3
    assert f"1 images are lost or changed on disk, such as {lost}" in caplog.text
    assert "00002" not in set(bins.read(tmp_path / "data")["image_id"])
    assert bring(source, tmp_path / "data").num_fetched == 1
    assert len(packing.pack_fetched(tmp_path / "data", SMALL, config(source))) == 4


def test_a_snapshot_is_packed_with_its_extra_images(source, tmp_path):
    for number in range(10, 40):
        add_bin(source, f"{number * 40:05d}", number % 6)
    bring(source, tmp_path / "data")
    rows = bins.read(tmp_path / "data")
    snapshot = assembly.build(tmp_path / "data", rows, Classes.parse("0..3"), "source", extra_names=("4",))
    pack = packing.pack_snapshot(snapshot, SMALL)
    assert len(snapshot.extra())
    assert len(pack) == snapshot.num_images + len(snapshot.extra())
    assert pack.folder == packs.open_pack(tmp_path / "data", SMALL).folder
