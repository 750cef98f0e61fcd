import hashlib
import io
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from bins import jpeg
from PIL import Image

from bincount.data import packing, packs, pictures
from bincount.errors import DatasetError, DiskFull
from bincount.settings import ImageConfig

SMALL = ImageConfig(image_size=32)


def fill(dataset, *names, size=(80, 60)):
    """Write one picture a name; returns the names as paths and digests."""
    for name in names:
        (dataset / name).write_bytes(jpeg(sum(map(ord, name)), size))
    return list(names), [hashlib.sha256((dataset / name).read_bytes()).hexdigest() for name in names]


def cut_off(path):
    """Leave the beginning of a picture; returns the digest of that."""
    os.truncate(path, 300)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_pictures_are_found_by_the_digest_of_their_file(tmp_path):
    paths, digests = fill(tmp_path, "a", "b", "c")
    pack = packing.update(tmp_path, SMALL, paths, digests)
    assert pack.images.shape == (3, 32, 32, 3)
    rows = pack.locate([digests[2], digests[0]])
    expected = [pictures.decode(tmp_path / name, SMALL) for name in ("c", "a")]
    assert np.array_equal(pack.images[rows], expected)


def test_a_pack_grows_without_touching_what_is_there(tmp_path):
    paths, digests = fill(tmp_path, "a", "b")
    packing.update(tmp_path, SMALL, paths, digests)
    file = packs.open_pack(tmp_path, SMALL).folder / "images.uint8"
    before = file.read_bytes()
    (tmp_path / "a").unlink()  # what is packed is not decoded again
    more, more_digests = fill(tmp_path, "c")
    pack = packing.update(tmp_path, SMALL, paths + more, digests + more_digests)
    assert len(pack) == 3
    assert file.read_bytes()[: len(before)] == before


def test_the_same_bytes_under_two_ids_share_a_row(tmp_path):
    paths, digests = fill(tmp_path, "a")
    pack = packing.update(tmp_path, SMALL, paths * 2, digests * 2)
    assert len(pack) == 1
    assert pack.locate(digests * 2).tolist() == [0, 0]


def test_what_an_interrupted_run_left_is_cut_off(tmp_path):
    paths, digests = fill(tmp_path, "a", "b")
    folder = packing.update(tmp_path, SMALL, paths[:1], digests[:1]).folder
    with open(folder / "images.uint8", "ab") as images:
        images.write(b"\0" * 5000)
    with open(folder / "digests.txt", "ab") as digest_file:
        digest_file.write(b"half of a dig")
    pack = packing.update(tmp_path, SMALL, paths, digests)
    assert len(pack) == 2
    assert np.array_equal(
        pack.images[pack.locate(digests)], [pictures.decode(tmp_path / name, SMALL) for name in paths]
    )


def test_a_digest_that_was_never_packed_is_an_error_that_names_the_command(tmp_path):
    pack = packing.update(tmp_path, SMALL, *fill(tmp_path, "a"))
    with pytest.raises(DatasetError, match="bincount prepare"):
        pack.locate(["0" * 64])


def test_what_does_not_decode_is_named_when_everything_else_is_packed(tmp_path):
    paths, digests = fill(tmp_path, "a", "b", "c")
    digests[1] = cut_off(tmp_path / "b")
    with pytest.raises(packing.Undecodable, match=r"1 files .*b .*bincount prepare") as caught:
        packing.update(tmp_path, SMALL, paths, digests)
    assert list(caught.value.reasons) == digests[1:2]
    pack = packs.open_pack(tmp_path, SMALL)
    assert pack.locate([digests[0], digests[2]]).tolist() == [0, 1]


def test_sizes_and_ways_to_resize_have_packs_of_their_own(tmp_path):
    paths, digests = fill(tmp_path, "a")
    folders = {
        packing.update(tmp_path, config, paths, digests).folder.name
        for config in (SMALL, ImageConfig(image_size=64), ImageConfig(image_size=32, resize="crop"))
    }
    assert folders == {"32-squash-v2", "64-squash-v2", "32-crop-v2"}


def test_squashing_keeps_the_borders_and_cropping_drops_them():
    picture = Image.new("RGB", (120, 40), "blue")
    picture.paste("red", (0, 0, 40, 40))
    file = io.BytesIO()
    picture.save(file, "PNG")
    red = {
        resize: (
            pictures.decode(io.BytesIO(file.getvalue()), ImageConfig(image_size=32, resize=resize))[..., 0] > 128
        ).mean()
        for resize in ("squash", "crop")
    }
    assert red["squash"] == pytest.approx(1 / 3, abs=0.02)
    assert red["crop"] == 0


def test_a_pack_travels_to_another_process_without_its_pictures(tmp_path):
    pack = packing.update(tmp_path, SMALL, *fill(tmp_path, "a"))
    assert pack.images.shape[0] == 1
    copy = pickle.loads(pickle.dumps(pack))
    assert len(pickle.dumps(pack)) < 1000
    assert np.array_equal(copy.images, pack.images)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_reported_and_with_space_the_pack_grows_on(tmp_path):
    paths, digests = fill(tmp_path, "a", "b")
    folder = packs.open_pack(tmp_path, SMALL).folder
    folder.mkdir(parents=True)
    (folder / "images.uint8").symlink_to("/dev/full")
    with pytest.raises(DiskFull, match=r"32-squash-v2: No space left on device; free some space and run again"):
        packing.update(tmp_path, SMALL, paths, digests)
    (folder / "images.uint8").unlink()
    assert len(packing.update(tmp_path, SMALL, paths, digests)) == 2


def test_two_at_once_pack_each_picture_once_and_who_reads_meanwhile_finds_what_was_there(tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "CHUNK", 2)
    paths, digests = fill(tmp_path, *(chr(ord("a") + number) for number in range(20)))
    packing.update(tmp_path, SMALL, paths[:2], digests[:2])
    with ThreadPoolExecutor(3) as threads:
        orders = [(paths, digests), (paths[::-1], digests[::-1])]
        updates = [threads.submit(packing.update, tmp_path, SMALL, *order) for order in orders]
        while not all(update.done() for update in updates):
            assert packs.open_pack(tmp_path, SMALL).locate(digests[:2]).tolist() == [0, 1]
    pack = updates[0].result()
    assert len(pack) == len(updates[1].result()) == 20
    expected = [pictures.decode(tmp_path / name, SMALL) for name in paths]
    assert np.array_equal(pack.images[pack.locate(digests)], expected)
