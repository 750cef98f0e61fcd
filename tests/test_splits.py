import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bincount.data import splits
from bincount.problem import SPLITS


def manifest(count, start=0, seed=0):
    """Rows in groups of one to three with six unevenly frequent classes."""
    random = np.random.default_rng([seed, start])
    ids = pd.Series([f"{number:05d}" for number in range(start, start + count)])
    group = ids.groupby(np.cumsum(random.random(count) < 0.5)).transform("min")
    label = random.choice(6, count, p=[0.03, 0.12, 0.2, 0.25, 0.23, 0.17])
    return pd.DataFrame(
        {"image_id": ids, "label": pd.array(label, "Int8"), "group": group, "status": "ok", "reason": ""}
    )


def shares(assigned):
    return pd.crosstab(assigned["label"], assigned["split"], normalize="index")[list(SPLITS)].to_numpy()


def test_every_class_is_assigned_80_10_10():
    assigned = splits.assign(manifest(6000))
    assert np.abs(shares(assigned) - [0.8, 0.1, 0.1]).max() < 0.015


def test_a_group_is_in_one_split():
    assigned = splits.assign(manifest(3000))
    assert (assigned.groupby("group")["split"].nunique() == 1).all()


def test_a_new_batch_leaves_earlier_images_in_their_splits():
    first = splits.assign(manifest(300))
    grown = splits.assign(pd.concat([first, manifest(200, start=300)], ignore_index=True))
    assert grown["split"][:300].equals(first["split"])
    assert grown["split"].notna().all()


def test_many_small_batches_keep_the_shares():
    assigned = manifest(50)
    for start in range(50, 3000, 50):
        assigned = pd.concat([splits.assign(assigned), manifest(50, start=start)], ignore_index=True)
    assert np.abs(shares(splits.assign(assigned)) - [0.8, 0.1, 0.1]).max() < 0.03


def test_the_order_of_the_rows_changes_nothing():
    rows = manifest(2000)
    shuffled = splits.assign(rows.sample(frac=1, random_state=3))
    assert shuffled["split"].sort_index().equals(splits.assign(rows)["split"])


def test_a_new_image_of_a_known_bin_joins_its_split():
    first = splits.assign(manifest(300))
    twin = manifest(1, start=900).assign(group=first["group"])
    for position in range(0, 300, 37):
        new = twin.assign(group=first["group"][position])
        grown = splits.assign(pd.concat([first, new], ignore_index=True))
        assert grown["split"].iloc[-1] == first["split"][position]


def test_an_image_that_would_join_bins_of_two_splits_is_quarantined():
    rows = pd.DataFrame(
        {
            "image_id": ["00001", "00002", "00003"],
            "label": pd.array([1, 1, 1], "Int8"),
            "group": "00001",
            "status": "ok",
            "reason": "",
            "split": ["train", None, "test"],
        }
    )
    assigned = splits.assign(rows)
    assert assigned["split"].isna().to_list() == [False, True, False]
    assert assigned["status"].to_list() == ["ok", "quarantined", "ok"]
    assert assigned["reason"][1] == splits.JOINS_TWO
    assert assigned["group"].nunique() == 3


def test_images_of_other_classes_get_no_split_but_hold_their_bin_together():
    rows = manifest(400)
    rows.loc[::2, "label"] = pd.NA
    assigned = splits.assign(rows)
    assert assigned["split"].isna().equals(rows["label"].isna())


def test_what_was_assigned_is_remembered_when_the_classes_change(tmp_path):
    both = splits.assign(manifest(500))
    splits.save(tmp_path, both)
    fewer = both.assign(label=both["label"].where(both["label"] > 0), split=both["image_id"].map(splits.load(tmp_path)))
    splits.save(tmp_path, splits.assign(fewer))
    again = splits.assign(both.assign(split=both["image_id"].map(splits.load(tmp_path))))
    assert again["split"].equals(both["split"])


def test_three_images_of_a_class_are_enough_to_go_on():
    assigned = splits.assign(manifest(3))
    assert assigned["split"].notna().all()


@pytest.mark.real
def test_the_challenge_labels_are_assigned_80_10_10_at_full_scale():
    lists = Path(os.environ["BINCOUNT_REAL_BINS"]) / "lists" / "challenge_labels.csv"
    labels = pd.read_csv(lists, dtype={"id": str})
    rows = pd.DataFrame(
        {
            "image_id": labels["id"],
            "label": labels["label"].astype("Int8"),
            "group": labels["id"],
            "status": "ok",
            "reason": "",
        }
    )
    assert len(rows) == 360_767
    assert np.abs(shares(splits.assign(rows)) - [0.8, 0.1, 0.1]).max() < 0.0005


# --- bins of no class that are trained on all the same -------------------------------------------------------------


def with_larger_counts(count=2000, start=0):
    """Return a manifest in which every seventh photo shows a count that is no class."""
    rows = manifest(count, start)
    is_large = np.arange(count) % 7 == 3
    return rows.assign(
        label=rows["label"].mask(is_large), class_name=rows["label"].astype("str").mask(is_large, "8").astype("str")
    )


LARGER = ("6", "7", "8")


def test_photos_of_counts_that_are_no_class_are_assigned_as_a_class_and_only_those_of_train_are_used():
    assigned = splits.assign(with_larger_counts(), LARGER)
    large = assigned["label"].isna()
    assert assigned["split"].notna().all()
    assert 0.75 < (assigned.loc[large, "split"] == "train").mean() < 0.85
    marked = splits.mark_extra(assigned)
    assert (marked.loc[large, "split"] == "extra").equals(assigned.loc[large, "split"] == "train")
    assert marked.loc[large & (assigned["split"] != "train"), "split"].isna().all()
    assert marked.loc[~large, "split"].equals(assigned.loc[~large, "split"])


def test_a_bin_with_a_photo_of_a_larger_count_is_in_one_split():
    assigned = splits.assign(with_larger_counts(), LARGER)
    assert (assigned.groupby("group")["split"].nunique() == 1).all()


def test_when_a_count_becomes_a_class_its_images_are_in_all_three_splits_and_none_has_moved(tmp_path):
    rows = with_larger_counts()
    before = splits.assign(rows, LARGER)
    splits.save(tmp_path, before)
    relabelled = rows.assign(label=rows["label"].fillna(6), split=rows["image_id"].map(splits.load(tmp_path)))
    after = splits.assign(relabelled)
    assert after["split"].equals(before["split"])
    assert np.abs(shares(after)[6] - [0.8, 0.1, 0.1]).max() < 0.05
