"""References for a question that somebody asks: pictures of a dataset that show an item, for one more picture.

As of the questions that models are trained on (see holdings), they are of train and of other bins than the picture in
question, one picture a bin, and at most MAX_REFERENCES. The newest come first: an item's package may have changed.
"""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd

from bincount.data import bins, ids
from bincount.data.groups import MAX_DISTANCE
from bincount.data.holdings import MAX_REFERENCES, NEAR, Holdings
from bincount.data.pictures import inspect
from bincount.data.snapshots import Snapshot
from bincount.errors import SettingsError
from bincount.model_settings import MAX_PIXELS


def locate(dataset: Path, image_id: str) -> Path | None:
    """Return the file of a bin's picture; None where the dataset has no such bin, or not its picture."""
    rows = bins.read(dataset, ["image_id", "path", "status"])
    found = rows.loc[(rows["image_id"] == image_id) & (rows["status"] == "ok"), "path"]
    return dataset / found.iloc[0] if len(found) else None


def find(snapshot: Snapshot, item: str, *pictures: bytes) -> dict[str, Path]:
    """Return the files of pictures that show an item to somebody who is asked about other pictures, by their ids.

    pictures are the contents of the files in question: one, or with that before two. The dataset's own pictures are
    known by their bytes; a copy of one that shows the item, smaller or encoded anew, by how it looks. Raises
    SettingsError where there is no reference, BadPicture where a picture cannot be read, and as Snapshot.read does.
    """
    holdings = Holdings.of(snapshot)
    code = holdings.names.get_indexer([item])[0]
    if code < 0:
        raise SettingsError(_unknown(item, holdings.names))
    lines = holdings.lines
    holders = lines.loc[(lines["item"] == code) & (lines["split"] == "train"), "picture"]
    candidates = _newest_first(holdings.pictures.iloc[holders], snapshot.dataset)
    own = pd.concat(_own(snapshot, candidates, picture) for picture in pictures)
    found = candidates[_are_apart(candidates, own)]
    found = found.drop_duplicates("group").drop_duplicates("sha256").head(MAX_REFERENCES)
    if found.empty:
        raise SettingsError(
            f"no other bin of train holds the item {item}, so that none shows it; give pictures that do by --references"
        )
    return dict(zip(found["image_id"], found["file"], strict=True))


def _unknown(item: str, names: pd.Index) -> str:
    meant = ids.similar(item, pd.Series(names, dtype="str")) if len(names) else []
    asked = f" ({' or '.join(meant)}?)" if meant else ""
    return (
        f"no bin holds an item {item}{asked}; the records of the snapshot list {len(names):,} items; correct --item, "
        "or give pictures that show it by --references"
    )


def _newest_first(pictures: pd.DataFrame, dataset: Path) -> pd.DataFrame:
    """Return the pictures whose files are there, with these; where it is not known when they came, by their ids."""
    files = [dataset / path for path in pictures["path"]]
    arrived = bins.read(dataset, ["image_id", "arrived"]).set_index("image_id")["arrived"]
    pictures = pictures.assign(file=files, arrived=arrived.reindex(pictures["image_id"]).to_numpy())
    pictures = pictures[[file.is_file() for file in files]]
    return pictures.sort_values(["arrived", "image_id"], ascending=False, na_position="last")


def _own(snapshot: Snapshot, candidates: pd.DataFrame, picture: bytes) -> pd.DataFrame:
    """Return the rows of the dataset that are of the picture."""
    manifest = snapshot.read()
    own = manifest[manifest["sha256"] == hashlib.sha256(picture).hexdigest()]
    if len(own):
        return own
    looks = inspect(picture, MAX_PIXELS, with_hash=True).dhash
    theirs = [inspect(file.read_bytes(), MAX_PIXELS, with_hash=True).dhash for file in candidates["file"]]
    distances = np.bitwise_count(np.array(theirs, np.uint64) ^ np.uint64(looks))
    return candidates[(distances <= MAX_DISTANCE) & (looks != 0)]  # a flat picture says nothing


def _are_apart(candidates: pd.DataFrame, own: pd.DataFrame) -> np.ndarray:
    """Return which of the candidates are of other bins, of other bytes, and more than NEAR ids away."""
    padded = own.loc[ids.is_padded(own["image_id"]), "image_id"].astype(float).to_numpy()
    near = (np.abs(candidates["number"].to_numpy()[:, None] - padded) <= NEAR).any(axis=1)  # never of NaN
    same = candidates["group"].isin(own["group"]) | candidates["sha256"].isin(own["sha256"])
    return ~(near | same.to_numpy())
