import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bincount.data import splits
from bincount.settings import SPLITS


def manifest(count, start=0, seed=0):
    """Rows in groups of one to three with six unevenly frequent classes."""
    random = np.random.default_rng([seed, start])
    ids = pd.Series([f"{number:05d}" for number in range(start, start + count)])
    group = ids.groupby(np.cumsum(random.random(count) < 0.5)).transform("min")
    label = random.choice(6, count, p=[0.03, 0.12, 0.2, 0.25, 0.23, 0.17])
    return pd.DataFrame(
        {"image_id": ids, "label": pd.array(label, "Int8"), "group": group, "status": "ok", "reason": ""}
    )


def shares(dealt):
    return pd.crosstab(dealt["label"], dealt["split"], normalize="index")[list(SPLITS)].to_numpy()


def test_every_class_is_dealt_80_10_10():
    dealt = splits.assign(manifest(6000))
    assert np.abs(shares(dealt) - [0.8, 0.1, 0.1]).max() < 0.015


def test_a_group_is_in_one_split():
    dealt = splits.assign(manifest(3000))
    assert (dealt.groupby("group")["split"].nunique() == 1).all()


def test_a_new_batch_leaves_earlier_images_in_their_splits():
    first = splits.assign(manifest(300))
    grown = splits.assign(pd.concat([first, manifest(200, start=300)], ignore_index=True))
    assert grown["split"][:300].equals(first["split"])
    assert grown["split"].notna().all()


def test_many_small_batches_keep_the_shares():
    dealt = manifest(50)
    for start in range(50, 3000, 50):
        dealt = pd.concat([splits.assign(dealt), manifest(50, start=start)], ignore_index=True)
    assert np.abs(shares(splits.assign(dealt)) - [0.8, 0.1, 0.1]).max() < 0.03


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


def test_an_image_that_would_join_bins_of_two_splits_is_set_aside():
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
    dealt = splits.assign(rows)
    assert dealt["split"].isna().to_list() == [False, True, False]
    assert dealt["status"].to_list() == ["ok", "set_aside", "ok"]
    assert dealt["reason"][1] == splits.JOINS_TWO
    assert dealt["group"].nunique() == 3


def test_images_of_other_classes_get_no_split_but_hold_their_bin_together():
    rows = manifest(400)
    rows.loc[::2, "label"] = pd.NA
    dealt = splits.assign(rows)
    assert dealt["split"].isna().equals(rows["label"].isna())


def test_what_was_dealt_is_remembered_when_the_classes_change(tmp_path):
    both = splits.assign(manifest(500))
    splits.save(tmp_path, both)
    fewer = both.assign(label=both["label"].where(both["label"] > 0), split=both["image_id"].map(splits.load(tmp_path)))
    splits.save(tmp_path, splits.assign(fewer))
    again = splits.assign(both.assign(split=both["image_id"].map(splits.load(tmp_path))))
    assert again["split"].equals(both["split"])


def test_three_images_of_a_class_are_enough_to_go_on():
    dealt = splits.assign(manifest(3))
    assert dealt["split"].notna().all()


@pytest.mark.real
def test_the_challenge_labels_are_dealt_80_10_10_at_full_scale():
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


# --- bins of no class that are learned from all the same -----------------------------------------------------------


def with_larger_counts(count=2000, start=0):
    """Where every seventh photo shows a count that is no class."""
    rows = manifest(count, start)
    is_large = np.arange(count) % 7 == 3
    return rows.assign(
        label=rows["label"].mask(is_large), class_name=rows["label"].astype("str").mask(is_large, "8").astype("str")
    )


def dealt_with_extra(rows):
    return splits.mark_extra(splits.assign(rows), ("6", "7", "8"))


def test_extra_photos_are_of_bins_that_val_and_test_do_not_know():
    dealt = dealt_with_extra(with_larger_counts())
    extra = dealt["split"] == "extra"
    assert extra.sum() > 150
    assert (dealt.loc[extra, "class_name"] == "8").all()
    judged = dealt.loc[dealt["split"].isin(["val", "test"]), "group"]
    assert not dealt.loc[extra, "group"].isin(judged).any()
    left_out = dealt["split"].isna()
    assert dealt.loc[left_out, "group"].isin(judged).all()


def test_extra_photos_move_no_other():
    rows = with_larger_counts()
    alone = splits.assign(rows)["split"]
    assert dealt_with_extra(rows)["split"].replace("extra", np.nan).equals(alone)


def test_a_later_photo_of_an_extra_bin_goes_to_train(tmp_path):
    rows = with_larger_counts()
    dealt = dealt_with_extra(rows)
    splits.save(tmp_path, dealt)
    alone = dealt[(dealt["split"] == "extra") & ~dealt["group"].duplicated(keep=False)]
    later = alone.assign(image_id="9" + alone["image_id"], label=pd.array([2] * len(alone), "Int8"), class_name="2")
    every = pd.concat([rows, later.drop(columns="split")], ignore_index=True)
    again = splits.assign(every.assign(split=every["image_id"].map(splits.load(tmp_path))))
    assert len(later) > 20
    assert (again.loc[again["image_id"].isin(later["image_id"]), "split"] == "train").all()
