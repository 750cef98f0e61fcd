"""Find out which images show the same bin.

Three things link two images:

- consecutive ids of the padded series whose records share items worth at least half of the smaller bin: the bin before
  and after an item was picked or stowed (75 % of the public sample have such a neighbour);
- the same bytes under two ids;
- without records, pictures that look nearly the same: 64-bit difference hashes at most MAX_DISTANCE bits apart.

A group is all that links reach, named by its smallest id.
"""

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from bincount.data.ids import is_padded

MAX_DISTANCE = 3  # bits of 64: a re-encoded or rescaled copy differs by fewer, photos of two bins by 30 in the median
MIN_SHARED = 0.5  # of the smaller bin's items


def assign(bins: pd.DataFrame, *, by_picture: bool) -> pd.Series:
    """Return the group of each bin, aligned with bins.

    bins has image_id, items (a list of (product, quantity) or null), sha256 and dhash. by_picture links pictures that
    look alike; it is meant for sources without records.
    """
    links = [_same_content(bins["sha256"]), neighbours(bins["image_id"], bins["items"])]
    if by_picture:
        links.append(similar_pictures(bins["dhash"].to_numpy(np.uint64)))
    pairs = np.concatenate(links)  # (L, 2) positions
    size = len(bins)
    graph = coo_array((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), shape=(size, size))
    component = connected_components(graph, directed=False)[1]
    first = bins["image_id"].groupby(component).min()
    return pd.Series(first.to_numpy()[component], index=bins.index, name="group", dtype="str")


def neighbours(image_ids: pd.Series, items: pd.Series) -> np.ndarray:
    """Return the positions of consecutive padded ids that share enough items, the lower id first, (L, 2)."""
    padded = is_padded(image_ids) & items.notna().to_numpy()
    positions = np.flatnonzero(padded)
    listed = pa.array(items.iloc[positions].tolist(), pa.map_(pa.string(), pa.int64()))
    lengths = np.diff(listed.offsets.to_numpy())
    lines = pd.DataFrame(
        {
            "number": np.repeat(image_ids.iloc[positions].astype(np.int64).to_numpy(), lengths),
            "position": np.repeat(positions, lengths),
            "item": pd.Categorical(listed.keys.to_pandas()).codes,
            "quantity": listed.items.to_numpy(),
        }
    )
    total = lines.groupby("position")["quantity"].sum()
    following = lines.assign(number=lines["number"] - 1)
    both = lines.merge(following, on=["number", "item"], suffixes=("", "_next"))
    both["shared"] = np.minimum(both["quantity"], both["quantity_next"])
    pairs = both.groupby(["position", "position_next"])["shared"].sum().reset_index()
    smaller = np.minimum(total.loc[pairs["position"]].to_numpy(), total.loc[pairs["position_next"]].to_numpy())
    linked = pairs[pairs["shared"].to_numpy() >= MIN_SHARED * smaller]
    return linked[["position", "position_next"]].to_numpy(np.int64).reshape(-1, 2)


def similar_pictures(hashes: np.ndarray, max_distance: int = MAX_DISTANCE) -> np.ndarray:
    """Return the pairs of positions whose (N,) uint64 hashes differ in at most max_distance bits, (L, 2).

    By the pigeonhole principle two such hashes agree in one of max_distance + 1 bands of bits, so that only those that
    share a band are compared. A flat picture has hash 0 and says nothing: it is not linked. Equal hashes are linked to
    the first of them and not all with all.
    """
    unique, inverse = np.unique(hashes, return_inverse=True)
    representative = np.full(len(unique), -1)
    representative[inverse[::-1]] = np.arange(len(hashes))[::-1]
    chained = np.flatnonzero((representative[inverse] != np.arange(len(hashes))) & (hashes != 0))
    pairs = [np.stack([representative[inverse[chained]], chained], axis=1)]
    bits = -(-64 // (max_distance + 1))
    meaningful = np.flatnonzero(unique != 0)
    for shift in range(0, 64, bits):
        band = (unique[meaningful] >> np.uint64(shift)) & np.uint64((1 << bits) - 1)
        order = meaningful[np.argsort(band, kind="stable")]
        for left, right in _pairs_in_runs(np.sort(band)):
            distance = np.bitwise_count(unique[order[left]] ^ unique[order[right]])
            near = distance <= max_distance
            pairs.append(np.stack([representative[order[left[near]]], representative[order[right[near]]]], axis=1))
    return np.concatenate(pairs).astype(np.int64)


def _same_content(digests: pd.Series) -> np.ndarray:
    positions = pd.Series(np.arange(len(digests)), index=digests.index)
    first = positions.groupby(digests).transform("min").fillna(positions).astype(np.int64)
    return np.stack([first.to_numpy(), positions.to_numpy()], axis=1)[(first != positions).to_numpy()]


def _pairs_in_runs(values: np.ndarray):
    """Yield all pairs of positions with equal values in a sorted array, in vectors by distance."""
    distance = 1
    left = np.arange(len(values) - 1)
    while len(left):
        left = left[left + distance < len(values)]
        left = left[values[left] == values[left + distance]]
        yield left, left + distance
        distance += 1
