import numpy as np
import pytest
import torch

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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_gpu_gets_the_same_batches_from_its_own_memory_and_from_the_pack(monkeypatch, share):
    monkeypatch.setattr("bincount.training.reader.MAX_SHARE_OF_GPU", share)
    reader = Reader(PACK, ROWS, torch.device("cuda", 0))
    assert (reader.resident is not None) == (share > 0)
    for batch, positions in zip(reader.batches(POSITIONS), POSITIONS, strict=True):
        assert np.array_equal(batch.cpu().numpy(), PACK[ROWS[positions]])
