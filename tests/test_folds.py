"""Folds: who leaves out what, and that nothing of a fold is trained on without it."""

import numpy as np
import pandas as pd
import pytest
from synthetic_training import IMAGES, QUICK, dataset

from bincount.data import folds, snapshots
from bincount.data.folds import Fold
from bincount.errors import DatasetError
from bincount.problem import Classes
from bincount.settings import TrainConfig
from bincount.training import loop
from bincount.training.crossfit import CrossFit
from bincount.training.run_folder import Request, folder_of
from bincount.workspace import Workspace

CLASSES = Classes.parse("0..2")


def frozen(folder, rows: list[tuple[str, str, str]]) -> snapshots.Snapshot:
    """A snapshot of images, each with its group, its class and its split."""
    table = pd.DataFrame(rows, columns=["group", "class_name", "split"])
    ids = [f"{number:05}" for number in range(len(table))]
    label = pd.to_numeric(table["class_name"]).where(table["split"] != "extra").astype("Int8")
    return snapshots.freeze(
        table.assign(
            image_id=ids,
            quantity=table["class_name"].astype("Int16"),
            label=label,
            path=ids,
            bytes=1,
            sha256=[f"{number:064}" for number in range(len(table))],
            width=32,
            height=32,
            status="ok",
            reason="",
        ),
        CLASSES,
        "drawn",
        folder,
    )


@pytest.fixture
def pairs(tmp_path):
    """120 bins of two images each for train, 20 of seven items that are extra, and some for val and test."""
    rows = [(f"bin{number}", str(number % 3), "train") for number in range(120) for _ in range(2)]
    rows += [(f"large{number}", "7", "extra") for number in range(20)]
    rows += [(f"other{number}", str(number % 3), split) for number, split in enumerate(["val"] * 15 + ["test"] * 15)]
    return frozen(tmp_path, rows)


def test_images_of_one_bin_share_a_fold_and_val_and_test_have_none(pairs):
    assigned = folds.assign(pairs, 4)
    rows = pairs.read().set_index("image_id")
    assert set(rows.loc[assigned.index, "split"]) == {"train", "extra"}
    assert len(assigned) == rows["split"].isin(["train", "extra"]).sum()
    assert (assigned.groupby(rows.loc[assigned.index, "group"]).nunique() == 1).all()
    assert set(assigned) == {1, 2, 3, 4}


def test_every_class_is_spread_evenly_over_the_folds(pairs):
    assigned = folds.assign(pairs, 4)
    names = pairs.read().set_index("image_id").loc[assigned.index, "class_name"]
    counts = pd.crosstab(names.to_numpy(), assigned.to_numpy())
    assert (counts.max(axis=1) - counts.min(axis=1) <= 2).all()  # a bin has two images
    assert counts.sum().max() - counts.sum().min() <= 4


def test_a_retry_finds_the_same_folds_whatever_was_read_before(pairs):
    first = folds.assign(pairs, 3)
    again = folds.assign(snapshots.open_snapshot(pairs.path), 3)
    assert first.equals(again)


def test_each_bin_is_left_out_by_exactly_one_fold(pairs):
    left_out = np.stack([folds.left_out(pairs, Fold(number, 5)) for number in range(1, 6)])
    used = pairs.read()["split"].isin(["train", "extra"]).to_numpy()
    assert (left_out.sum(axis=0) == used).all()


def test_a_class_that_a_fold_would_leave_without_images_is_an_error_that_names_the_remedy(tmp_path):
    rows = [(f"bin{number}", str(number % 2), "train") for number in range(20)] + [("alone", "2", "train")]
    snapshot = frozen(tmp_path, rows)
    with pytest.raises(DatasetError, match=r"no image of 2 would be left to train on; prepare more images .* --folds"):
        folds.assign(snapshot, 4)


def test_a_fold_that_is_trained_has_never_seen_a_bin_of_it(tmp_path, monkeypatch):
    snapshot, pack = dataset(tmp_path / "data")
    fold = Fold(2, 3)
    taken = {}
    read_examples = loop.read_examples

    def read(manifest, split, *rest):
        examples = read_examples(manifest, split, *rest)
        taken[split] = (manifest[manifest["split"] == split], examples.rows)
        return examples

    monkeypatch.setattr(loop, "read_examples", read)
    once = QUICK.model_copy(update={"epochs": 1})
    loop.fit(Request(snapshot, pack, IMAGES, once, tmp_path / "run", fold))
    rows = snapshot.read()
    held_out = rows[folds.left_out(snapshot, fold)]
    manifest, packed = taken["train"]
    assert len(held_out) == 32
    assert not set(held_out["group"]) & set(manifest["group"])
    assert not set(pack.locate(held_out["sha256"]).tolist()) & set(packed.tolist())
    assert len(manifest) == 96 - 32
    assert len(taken["val"][0]) == 24  # as in every training


def test_trainings_of_folds_lie_in_folders_of_their_own(tmp_path):
    snapshot, _ = dataset(tmp_path / "data", train=12, val=3)
    workspace, training = Workspace(root=tmp_path), TrainConfig(members=2, weights="none", seed=5)
    cross_fit = CrossFit(workspace, snapshot, IMAGES, training, 3)
    networks = cross_fit.networks()
    assert [(str(fold), member.seed, member.members) for fold, _, member, _ in networks[:3]] == [
        ("fold 1 of 3", 5, 1),
        ("fold 1 of 3", 6, 1),
        ("fold 2 of 3", 5, 1),
    ]
    plain = [folder_of(workspace, snapshot, IMAGES, each) for each in (training, *training.each_member())]
    folders = [folder for *_, folder in networks] + [cross_fit.folder, *plain]
    assert len(set(folders)) == len(folders)
    assert cross_fit.whole().members == 6
