"""The verification questions of the ABID challenge, as it defines them, for comparison alone: they leak.

The challenge splits pictures and not bins (github.com/silverbottlep/abid_challenge, make_obj_verification_data.py), so
that the picture before or after a change is often a reference of the very bin in question. Here each question says
whether that is so. The lists of questions that were published cannot be had any more; these are drawn by the same
rules from the published split of the pictures and the records that a snapshot has.

The published scores are of 20,000 questions with the answer yes and as many with no.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from bincount.data.holdings import NEAR, Holdings, as_list, hash_ids, join
from bincount.data.manifest import REFERENCES
from bincount.data.questions import as_manifest
from bincount.data.snapshots import Snapshot

LARGEST = 5  # items: the pictures of 1 to 5, and quantities as many


def read(snapshot: Snapshot, split_file: Path) -> Holdings:
    """Take the pictures of a snapshot that the challenge's list has in a split, with 1 to 5 items.

    The list is a CSV with id, label and split, which is train or val.
    """
    listed = pd.read_csv(split_file, dtype={"id": "str", "split": "str"})
    listed = listed[listed["label"].between(1, LARGEST)].set_index("id")["split"]
    manifest = snapshot.read()
    split = manifest["image_id"].map(listed).astype("str")
    return Holdings.make(manifest.assign(split=split)[(manifest["status"] == "ok") & split.notna()], snapshot)


def ask_objects(holdings: Holdings) -> pd.DataFrame:
    """Ask of each picture of val about each of its items that a picture of train shows, and about one item drawn.

    Returns a manifest with the columns of questions; beside them leaks, whether a reference is at most NEAR ids away.
    All pictures of train that hold the item are references. An item is drawn from all items of any picture, and the
    question left out where no picture of train shows it, or the picture in question does.
    """
    positives = holdings.lines[holdings.lines["split"] == "val"]
    pictures = np.flatnonzero(holdings.pictures["split"] == "val")
    drawn = hash_ids(holdings.pictures["image_id"].take(pictures)) % np.uint64(len(holdings.names))
    names = pd.Series(holdings.names.take(drawn.astype(np.int64)))
    ids = join(holdings.pictures["image_id"].take(pictures), names)
    negatives = pd.DataFrame({"picture": pictures, "item": drawn.astype(np.int64), "id": ids})
    negatives = negatives[~negatives["id"].isin(positives["id"])]
    rows = pd.concat([positives.assign(label=1), negatives.assign(label=0)], ignore_index=True)
    rows = _with_references(holdings, rows)
    return as_manifest(holdings, rows[rows[REFERENCES].list.len() > 0].reset_index(drop=True), ["leaks"])


def ask_quantities(holdings: Holdings) -> pd.DataFrame:
    """Ask of each picture of val about the quantity of each of its items: the recorded one, and another of 1 to 5.

    Returns what ask_objects does, also where there is no reference.
    """
    lines = _with_references(holdings, holdings.lines[holdings.lines["split"] == "val"].reset_index(drop=True))
    lines = lines[lines["quantity"] <= LARGEST].reset_index(drop=True)
    steps = 1 + (hash_ids(lines["id"]) % np.uint64(LARGEST - 1)).astype(np.int64)
    wrong = (lines["quantity"] - 1 + steps) % LARGEST + 1
    rows = pd.concat([lines.assign(asked=lines["quantity"], label=1), lines.assign(asked=wrong, label=0)])
    rows = rows.reset_index(drop=True)
    return as_manifest(holdings, rows.assign(id=join(rows["id"], rows["asked"].astype("str"))), ["leaks"])


def find_leaks(holdings: Holdings) -> np.ndarray:
    """Return whether a picture of train at most NEAR ids away holds the item, for each item of each picture of val.

    In the whole dataset more items have a picture of train, but no more of these questions leak than here: their share
    among all items of pictures of val is the least share among those that are asked about.
    """
    return _with_references(holdings, holdings.lines[holdings.lines["split"] == "val"])["leaks"].to_numpy()


def _with_references(holdings: Holdings, rows: pd.DataFrame) -> pd.DataFrame:
    """Add all pictures of train that hold the item, as references, and whether one of them is near; rows are of val."""
    rows = rows.reset_index(drop=True)
    train = holdings.lines.loc[holdings.lines["split"] == "train", ["item", "picture"]]
    found = rows[["item", "picture"]].assign(row=np.arange(len(rows))).merge(train, on="item", suffixes=("", "_train"))
    found = found.sort_values(["row", "picture_train"])
    numbers = holdings.pictures["number"].to_numpy()
    near = np.abs(numbers[found["picture"]] - numbers[found["picture_train"]]) <= NEAR
    lengths = np.bincount(found["row"], minlength=len(rows))
    leaks = np.bincount(found["row"], near, minlength=len(rows)) > 0
    references = as_list(lengths, pa.array(found["picture_train"].to_numpy(np.int32)))
    return rows.assign(references=references, leaks=leaks)
