"""Questions about the change of one item: by how many pieces of it did a bin change since the picture before?

Each pair of consecutive pictures of a bin is asked about every item that one of the two records lists, with pictures of
other bins that hold it. A row a pair and item has

- image_id: the ids of the two pictures and the item; group and split: those of the bin; item
- sha256, sha256_before: the picture and the one before it; references: the SHA-256 of pictures that show the item
- held_before, held: how many of the item the records say; change: their difference, where farther ones count as the
  largest

References are those of questions about items (see holdings), and apart from both pictures.
"""

import numpy as np
import pandas as pd
import pyarrow as pa

from bincount.data import questions
from bincount.data.holdings import Holdings, as_array, as_list, join
from bincount.data.manifest import REFERENCES
from bincount.data.questions import LARGEST_CHANGE
from bincount.data.snapshots import Snapshot
from bincount.errors import DatasetError
from bincount.history import FARTHEST


def find(snapshot: Snapshot) -> pd.DataFrame:
    """Find the changes of items between the pictures of a snapshot's bins, sorted by id.

    Raises DatasetError where no bin has two pictures, or no item of such a bin is in another one.
    """
    pairs, holdings = questions.find_pairs(snapshot), Holdings.of(snapshot)
    places = pd.Series(np.arange(len(holdings.pictures)), index=holdings.pictures["image_id"])
    sides = pd.DataFrame({side: places[pairs[side]].to_numpy() for side in ("after", "before")})
    lists = holdings.find_positives().set_index(["picture", "item"])[REFERENCES]
    numbers = holdings.lines.set_index(["picture", "item"])["quantity"]
    lines = [
        sides.assign(pair=sides.index, picture=sides[side]).merge(holdings.lines[["picture", "item"]], on="picture")
        for side in ("after", "before")
    ]
    # Of an item that both show it is the line of the later picture.
    lines = pd.concat(lines).drop_duplicates(["pair", "item"], ignore_index=True)
    of_lines = pd.MultiIndex.from_frame(lines[["picture", "item"]])
    lines = lines[of_lines.isin(lists.index)].reset_index(drop=True)
    if lines.empty:
        raise DatasetError("no item of a bin with two pictures is in another bin; fetch more bins")
    held, held_before = (
        numbers.reindex(pd.MultiIndex.from_frame(lines[[side, "item"]])).fillna(0).to_numpy(np.int64)
        for side in ("after", "before")
    )
    references = as_array(lists[pd.MultiIndex.from_frame(lines[["picture", "item"]])])
    lengths, flat = np.asarray(references.value_lengths()), np.asarray(references.flatten())
    apart = np.ones(len(flat), bool)
    for side in ("after", "before"):
        apart &= holdings.are_apart(np.repeat(lines[side].to_numpy(), lengths), flat)
    lengths = np.bincount(np.repeat(np.arange(len(lines)), lengths), apart, minlength=len(lines)).astype(np.int64)
    digests = pa.array(holdings.pictures["sha256"]).take(pa.array(flat[apart]))
    pair, item = pairs.take(lines["pair"]).reset_index(drop=True), pd.Series(holdings.names.take(lines["item"]))
    table = pd.DataFrame(
        {
            "image_id": join(pair["before"], pair["after"], item),
            "group": pair["group"],
            "split": pair["split"],
            "item": item,
            "sha256": pair["sha256_after"],
            "sha256_before": pair["sha256_before"],
            "held_before": held_before,
            "held": held,
            "change": np.clip(held - held_before, -LARGEST_CHANGE, LARGEST_CHANGE),
            REFERENCES: as_list(lengths, digests),
        }
    )
    return table[lengths > 0].sort_values("image_id", ignore_index=True)


def verify(found: pd.DataFrame) -> pd.DataFrame:
    """Ask of changes that were found whether they are so many pieces: once by the true change, once by another.

    As of questions.verify_changes, in each split, and for each quantity before, every change is asked as often where it
    is right as where it is wrong; most items do not change, so that some of these are left out. Returns a row a
    question: pair, the id among those found, with group and split; asked; label, 1 for yes; count_before, the quantity.
    """
    cells = [found["split"], found["held_before"].clip(upper=FARTHEST)]
    wrong = pd.concat(
        questions.other_changes(changes, found["image_id"]) for _, changes in found["change"].groupby(cells)
    )
    rows = found.loc[wrong.index]
    table = pd.DataFrame(
        {"pair": rows["image_id"], "group": rows["group"], "split": rows["split"], "count_before": rows["held_before"]}
    )
    both = [table.assign(asked=rows["change"], label=1), table.assign(asked=wrong, label=0)]
    both = pd.concat(both, ignore_index=True)
    return both.assign(image_id=join(both["pair"], both["asked"].astype("str"))).sort_values(
        "image_id", ignore_index=True
    )
