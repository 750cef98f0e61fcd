"""Which pictures hold which items, and pictures of other bins that hold the same: references to compare with.

A reference shows an item to somebody who has never seen it. It must not show the bin in question, or it tells what is
in the bin. So references are

- of train, whatever the split of the picture in question,
- of other bins, one picture a bin, and at most MAX_REFERENCES,
- of other bytes than the picture in question,
- more than NEAR ids away from it: consecutive pictures may be of one bin though their records do not say so.

Which are taken follows from hashes: with more bins, few references change.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from bincount.data import items
from bincount.data.ids import is_padded
from bincount.data.manifest import is_corrected, splits_of_bins
from bincount.data.snapshots import Snapshot
from bincount.problem import SPLITS

logger = logging.getLogger(__name__)

MAX_REFERENCES = 8
NEAR = 2  # ids
WINDOW = MAX_REFERENCES + 1 + 2 * NEAR  # candidates of which MAX_REFERENCES are left: one is of the bin, 2 * NEAR near
ROUNDS = 20  # of drawing negatives, until nearly all pictures have an item that is not in their bin
AT_ONCE = 200_000  # lines, some 200 MB


@dataclass(frozen=True)
class Holdings:
    """The pictures of bins with a split, and the items that their records list.

    - pictures: rows of the manifest, with the split of the bin; bin, its number; number, that of the id in the padded
      series, or NaN; content, equal where the bytes are
    - lines: a row an item of a picture: picture (a position), item (a code), quantity, split, and id, which is readable
    - names: the item of each code
    """

    pictures: pd.DataFrame
    lines: pd.DataFrame
    names: pd.Index

    @classmethod
    def of(cls, snapshot: Snapshot) -> "Holdings":
        """Read the holdings of a snapshot's bins. Raises as Snapshot.read does."""
        manifest = snapshot.read()
        split = manifest["group"].map(splits_of_bins(manifest)).astype("str")
        return cls.make(manifest.assign(split=split)[(manifest["status"] == "ok") & split.notna()], snapshot)

    @classmethod
    def make(cls, pictures: pd.DataFrame, snapshot: Snapshot) -> "Holdings":
        """Take some of the pictures of a snapshot, which are rows of a manifest, with the split that they have."""
        pictures = pictures.reset_index(drop=True)
        padded = is_padded(pictures["image_id"])
        number = pictures["image_id"].where(padded).astype(float)
        codes = {name: pd.factorize(pictures[of])[0] for name, of in (("bin", "group"), ("content", "sha256"))}
        pictures = pictures.assign(number=number, **codes)
        lines = items.lines(items.read(snapshot, pictures["image_id"]))
        item, names = pd.factorize(lines["item"])
        position = lines["position"].to_numpy()
        lines = pd.DataFrame(
            {
                "picture": position,
                "item": item,
                "quantity": lines["quantity"],
                "split": pictures["split"].take(position).to_numpy(),
                "id": join(pictures["image_id"].take(position), lines["item"]),
            }
        )
        return cls(pictures, lines, names)

    def find_positives(self) -> pd.DataFrame:
        """Return the lines that have references, with these: lists of positions among pictures, in Arrow's memory.

        Lines of records that reviewers found wrong are neither of the two.
        """
        refuted = is_corrected(self.pictures).to_numpy()[self.lines["picture"]]
        lines = self.lines.assign(key=self._ring_keys())[~refuted].reset_index(drop=True)
        holders = lines[lines["split"] == "train"].sort_values("key")
        bin_of_holder = self.pictures["bin"].to_numpy()[holders["picture"]]
        holders = holders[~pd.DataFrame({"item": holders["item"], "bin": bin_of_holder}).duplicated()]
        found = [self._references(piece, holders) for piece in _pieces(lines)]
        return pd.concat(found, ignore_index=True).drop(columns="key")

    def _ring_keys(self) -> np.ndarray:
        """Place each line on the ring of its item: the item in the upper half of 64 bits, a hash in the lower."""
        places = hash_ids(self.lines["id"]) >> np.uint64(32)
        return (self.lines["item"].to_numpy(np.uint64) << np.uint64(32)) | places

    def _references(self, lines: pd.DataFrame, holders: pd.DataFrame) -> pd.DataFrame:
        """Find the references of lines: those that come next on the ring of the item (consistent hashing)."""
        item = lines["item"].to_numpy()
        of_item = holders["item"].to_numpy()
        start, end = np.searchsorted(of_item, item), np.searchsorted(of_item, item, side="right")
        next_one = np.searchsorted(holders["key"].to_numpy(), lines["key"].to_numpy(), side="right")
        num = (end - start)[:, None]
        places = np.arange(WINDOW)[None, :]
        on_ring = start[:, None] + (next_one[:, None] - start[:, None] + places) % np.maximum(num, 1)
        candidates = holders["picture"].to_numpy()[np.minimum(on_ring, len(holders) - 1)] if len(holders) else on_ring
        usable = (places < num) & self.are_apart(lines["picture"].to_numpy()[:, None], candidates)
        usable &= usable.cumsum(axis=1) <= MAX_REFERENCES
        lengths = usable.sum(axis=1)
        found = lengths > 0
        references = as_list(lengths[found], pa.array(candidates[usable].astype(np.int32)))
        return lines[found].assign(references=references.set_axis(lines.index[found]))

    def are_apart(self, some: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Return which of two arrays of pictures are of two bins, of other bytes, and more than NEAR ids apart."""
        bins, contents, numbers = (self.pictures[name].to_numpy() for name in ("bin", "content", "number"))
        near = np.abs(numbers[some] - numbers[others]) <= NEAR  # never of NaN
        return (bins[some] != bins[others]) & (contents[some] != contents[others]) & ~near

    def pair_with_negatives(self, positives: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Ask each picture of a positive about the item of another one of its split, which its own bin does not hold.

        Returns the positives and the negatives, aligned. Both have each picture, and each item with its references,
        equally often; positives for which no such item is found are left out, some of the most frequent items.
        """
        pieces = [positives[positives["split"] == split].reset_index(drop=True) for split in SPLITS]
        permuted = [self._permute(piece) for piece in pieces]
        yes = pd.concat([piece.iloc[rows] for piece, (rows, _) in zip(pieces, permuted, strict=True)])
        other = pd.concat([piece.iloc[of] for piece, (_, of) in zip(pieces, permuted, strict=True)])
        yes, other = yes.reset_index(drop=True), other.reset_index(drop=True)
        if num_left_out := len(positives) - len(yes):
            logger.info(
                "%s questions with the answer yes are left out: there is no other picture to ask about the same item "
                "with the answer no",
                f"{num_left_out:,}",
            )
        image_id = self.pictures["image_id"].take(yes["picture"])
        no = other.assign(picture=yes["picture"], id=join(image_id, pd.Series(self.names.take(other["item"]))))
        return yes, no

    def _permute(self, positives: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """Return rows of positives of one split, and for each of them the row whose item its picture is asked about.

        At first it is that of the next positive on a ring of hashes, of which a new one changes only its neighbour's.
        Where that does not fit, two exchange; at last those that still do not fit are taken out one by one.
        """
        order = np.argsort(hash_ids(positives["id"]), kind="stable")
        other = np.empty(len(order), np.int64)
        other[order] = np.roll(order, -1)
        fits = self._fit(positives, np.arange(len(order)), other)
        for seed in range(1, ROUNDS):
            bad = ~fits | self._asked_twice(positives, other)
            if not bad.any():
                break
            ring = np.argsort(hash_ids(positives["id"], seed), kind="stable")
            following = np.roll(ring, -1)
            meet = bad[ring] & ~bad[following]
            some, others = ring[meet], following[meet]
            both = self._fit(positives, some, other[others]) & self._fit(positives, others, other[some])
            some, others = some[both], others[both]
            other[some], other[others] = other[others], other[some]
            fits[some] = fits[others] = True
        bad = ~fits | self._asked_twice(positives, other)
        return self._take_out(positives, other, np.flatnonzero(bad))

    def _take_out(self, positives: pd.DataFrame, other: np.ndarray, bad: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Take rows out of a permutation: who had their item gets the one that they had, or is taken out too."""
        other, kept = other.copy(), np.ones(len(other), bool)
        item, picture = positives["item"].to_numpy(), positives["picture"].to_numpy()
        by_picture = np.argsort(picture, kind="stable")
        first_row = np.searchsorted(picture, picture, sorter=by_picture)
        last_row = np.searchsorted(picture, picture, "right", sorter=by_picture)
        who_has = np.argsort(other)
        for first in bad:
            row = first
            while kept[row]:
                kept[row] = False
                before, after = who_has[row], other[row]
                other[before], who_has[after] = after, before
                of_picture = by_picture[first_row[before] : last_row[before]]
                asked = item[other[of_picture[kept[of_picture]]]]
                is_new = np.count_nonzero(asked == item[after]) < 2
                if is_new and self._fit(positives, np.array([before]), np.array([after]))[0]:
                    break
                row = before
        rows = np.flatnonzero(kept)
        return rows, other[rows]

    @staticmethod
    def _asked_twice(positives: pd.DataFrame, other: np.ndarray) -> np.ndarray:
        """Return which of the pictures are asked about an item that an earlier row asks them about."""
        asked = pd.DataFrame({"picture": positives["picture"], "item": positives["item"].to_numpy()[other]})
        return asked.duplicated().to_numpy()

    def _fit(self, positives: pd.DataFrame, some: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Return whether pictures of some rows can be asked about the items of others, (N,) bool.

        Their bins do not hold the item, and the references are apart from them.
        """
        picture = positives["picture"].to_numpy()[some]
        item = positives["item"].to_numpy()[others]
        pairs = _pair_up(self.pictures["bin"].to_numpy()[picture], item)
        is_held = self._held.take(np.searchsorted(self._held, pairs), mode="clip") == pairs
        references = as_array(positives["references"]).take(pa.array(others))
        lengths = np.asarray(references.value_lengths())
        apart = self.are_apart(np.repeat(picture, lengths), np.asarray(references.flatten()))
        num_apart = np.bincount(np.repeat(np.arange(len(some)), lengths), apart, minlength=len(some))
        return ~is_held & (num_apart == lengths)

    @cached_property
    def _held(self) -> np.ndarray:
        """The pairs of bin and item that occur, sorted."""
        bins = self.pictures["bin"].to_numpy()[self.lines["picture"]]
        return np.unique(_pair_up(bins, self.lines["item"].to_numpy()))


def _pair_up(bins: np.ndarray, items: np.ndarray) -> np.ndarray:
    return bins.astype(np.int64) << 32 | items


def as_list(lengths: np.ndarray | pa.Array, values: pa.Array) -> pd.Series:
    """Return lists, of these lengths, of consecutive values, in Arrow's memory."""
    offsets = np.concatenate([[0], np.cumsum(np.asarray(lengths))]).astype(np.int32)
    lists = pa.ListArray.from_arrays(pa.array(offsets), values)
    return pd.Series(lists, dtype=pd.ArrowDtype(lists.type))


def as_array(lists: pd.Series) -> pa.Array:
    """Return a column of lists as one piece of Arrow's memory."""
    found = pa.array(lists)
    if not isinstance(found, pa.ChunkedArray):
        return found
    return found.chunk(0) if found.num_chunks == 1 else found.combine_chunks()  # which copies one piece too


def hash_ids(ids: pd.Series, seed: int = 0) -> np.ndarray:
    """Return the XXH3 of each id, (N,) uint64: the same in every process."""
    return np.fromiter((xxhash.xxh3_64_intdigest(name.encode(), seed) for name in ids.to_list()), np.uint64, len(ids))


def join(*texts: pd.Series) -> pd.Series:
    """Return texts with a space between, row by row; the index is left out."""
    columns = (pa.array(text, pa.large_string()) for text in texts)
    return pd.Series(pc.binary_join_element_wise(*columns, pa.scalar(" ", pa.large_string())), dtype="str")


def _pieces(lines: pd.DataFrame) -> Iterator[pd.DataFrame]:
    for start in range(0, max(len(lines), 1), AT_ONCE):
        yield lines.iloc[start : start + AT_ONCE]
