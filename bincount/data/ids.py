"""The ids of bins: which have the public bucket's form, and in which order a limited dataset takes them."""

import difflib
import hashlib
from collections.abc import Iterable

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

NUM_SIMILAR = 3
BLOCK = 100  # consecutive ids that enter a limited dataset together


def first_bins(image_ids: pd.Series, limit: int | None) -> pd.Series:
    """Return the first `limit` ids in the order in which a limited dataset grows.

    Ids are taken in blocks of consecutive numbers, so that neighbours, which often show one bin, arrive together; the
    blocks come in hashed order, so that no part of the key range is favoured. The order does not depend on the limit: a
    larger one only adds.
    """
    if limit is None or limit >= len(image_ids):
        return image_ids
    image_ids = image_ids.iloc[pc.sort_indices(pa.array(image_ids)).to_numpy()]
    order = np.empty(len(image_ids), np.uint64)
    numbered = image_ids.str.fullmatch("[0-9]{1,18}").to_numpy(bool)
    order[~numbered] = [_hash(image_id) for image_id in image_ids[~numbered]]
    numbers = image_ids[numbered]
    blocks, of_block = np.unique(
        2 * (numbers.astype(np.int64).to_numpy() // BLOCK) + is_padded(numbers), return_inverse=True
    )
    order[numbered] = np.array([_hash(str(block)) for block in blocks], np.uint64)[of_block]
    return image_ids.iloc[np.argsort(order, kind="stable")[:limit]]


def is_padded(image_ids: pd.Series) -> np.ndarray:
    """Return which ids belong to the public bucket's padded series, 00001 to 535234; 10 and 00010 are two bins."""
    return image_ids.str.fullmatch("[0-9]{5,18}").to_numpy(bool)


def similar(typed: str, image_ids: pd.Series) -> list[str]:
    """Return a few of the ids that may have been meant: the same but for zeros, folders, suffix or case, or alike."""
    core = _core(typed)
    same = image_ids[image_ids.str.lower().str.contains(core, regex=False)] if core else image_ids[:0]
    meant = [image_id for image_id in same if _core(image_id) == core]
    if not meant:  # those that share a half; all of half a million would take some seconds
        half = max(1, len(typed) // 2)
        near = image_ids[image_ids.str.startswith(typed[:half]) | image_ids.str.endswith(typed[half:])]
        near = near[near.str.len().between(len(typed) - 2, len(typed) + 2)]
        meant = difflib.get_close_matches(typed, near.head(20_000).to_list(), n=NUM_SIMILAR, cutoff=0.6)
    return sorted(meant)[:NUM_SIMILAR]


def _core(image_id: str) -> str:
    name = image_id.rstrip("/").rpartition("/")[2].lower()
    stem, dot, suffix = name.rpartition(".")
    return (stem if dot and 0 < len(suffix) < 6 else name).lstrip("0")


def _hash(name: str) -> int:
    # sha1, not hash(): the same order in every process
    return int.from_bytes(hashlib.sha1(name.encode()).digest()[:8])


def with_bins_of_questions(image_ids: Iterable[str]) -> set[str]:
    """Return ids with those of the bins that they are about, where they are of questions: `00523 B00ABC 2`."""
    return {part for image_id in image_ids for part in (image_id, *image_id.split(" "))}
