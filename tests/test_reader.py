from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from synthetic_training import dataset

from bincount.data.packs import Pack
from bincount.errors import DatasetError
from bincount.training import reader
from bincount.training.reader import Reader

PACK = np.random.default_rng(0).integers(0, 256, (50, 4, 4, 3), np.uint8)
ROWS = np.arange(10, 40)
POSITIONS = np.array([[3, 0, 29], [7, 7, 1]])


def test_batches_are_the_rows_of_a_split_in_the_order_asked_for():
    batches = list(Reader(PACK, ROWS, torch.device("cpu")).batches(POSITIONS))
    assert len(batches) == 2
    for batch, positions in zip(batches, POSITIONS, strict=True):
        assert np.array_equal(batch.numpy(), PACK[ROWS[positions]])


def test_no_positions_are_no_batches():
    assert list(Reader(PACK, ROWS, torch.device("cpu")).batches(POSITIONS[:0])) == []


@pytest.mark.parametrize("num_threads", [1, 3, 8, 64])
@pytest.mark.parametrize("num_rows", [0, 1, 7, 64])
def test_several_threads_gather_what_one_reads(monkeypatch, num_threads, num_rows):
    monkeypatch.setattr(reader, "GATHERING_THREADS", num_threads)
    rows = np.random.default_rng(1).integers(0, len(PACK), num_rows)
    with ThreadPoolExecutor(num_threads) as threads:
        assert np.array_equal(reader.gather(PACK, rows, threads).numpy(), PACK[rows])


def test_several_threads_repair_a_damaged_picture_as_one_does(tmp_path):
    _, pack = dataset(tmp_path, train=12, val=3)
    rows = np.array([5, 3, 11, 5, 0])
    sound = pack.images.take(rows)
    with open(pack.folder / "images.uint8", "r+b") as file:
        file.seek(3 * sound[0].nbytes)
        file.write(bytes(100))
    damaged = Pack(pack.folder, pack.image_size).images
    damaged._paths = {digest.decode(): f"images/{row:05}.png" for row, digest in enumerate(pack.digests.to_pylist())}
    with ThreadPoolExecutor(2) as threads:
        assert np.array_equal(reader.gather(damaged, rows, threads).numpy(), sound)
    damaged._paths = {}
    with open(pack.folder / "images.uint8", "r+b") as file:
        file.write(bytes(100))
    with ThreadPoolExecutor(2) as threads, pytest.raises(DatasetError, match="picture 0 is not what was packed"):
        reader.gather(damaged, rows, threads)


@pytest.mark.parametrize("ahead", [1, 2, 5])
def test_reading_further_ahead_changes_no_batch(monkeypatch, ahead):
    monkeypatch.setitem(reader.AHEAD, "cpu", ahead)
    batches = list(Reader(PACK, ROWS, torch.device("cpu")).batches(POSITIONS))
    assert np.array_equal(torch.stack(batches).numpy(), PACK[ROWS[POSITIONS]])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_gpu_gets_the_same_batches_from_its_own_memory_and_from_the_pack(monkeypatch, share):
    monkeypatch.setattr("bincount.training.reader.MAX_SHARE_OF_GPU", share)
    reading = Reader(PACK, ROWS, torch.device("cuda", 0))
    assert (reading.resident is not None) == (share > 0)
    for batch, positions in zip(reading.batches(POSITIONS), POSITIONS, strict=True):
        assert np.array_equal(batch.cpu().numpy(), PACK[ROWS[positions]])
