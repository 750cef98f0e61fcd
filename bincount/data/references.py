"""References for a question that somebody asks: pictures of a dataset that show an item, for one more picture.

As of the questions that models are trained on (see holdings), they are of train and of other bins than the picture in
question, one picture a bin, and at most MAX_REFERENCES. The newest come first: an item's package may have changed.
"""

import hashlib
from dataclasses import dataclass
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
    """Return what ItemPhotos.find does, of a snapshot. Raises as it and Snapshot.read do."""
    return ItemPhotos.read(snapshot).find(item, *pictures)


@dataclass(frozen=True, eq=False)
class ItemPhotos:
    """The pictures that may show items to somebody: those of train, with the items that their records list.

    - dataset: the folder in which their files are
    - every: all pictures of the snapshot: image_id, group and sha256
    - pictures: those of train: image_id, path, group, sha256; number, that of an id in the padded series, or NaN; and
      arrived, which is missing where it is not known
    - holders: of each item that a record lists, by its name, the positions of the pictures of train that show it
    """

    dataset: Path
    every: pd.DataFrame
    pictures: pd.DataFrame
    holders: dict[str, np.ndarray]

    @classmethod
    def read(cls, snapshot: Snapshot) -> "ItemPhotos":
        """Read what a snapshot has. Raises as Snapshot.read does."""
        holdings = Holdings.of(snapshot)
        lines = holdings.lines[holdings.lines["split"] == "train"]
        held, positions = np.unique(lines["picture"], return_inverse=True)
        arrived = bins.read(snapshot.dataset, ["image_id", "arrived"]).set_index("image_id")["arrived"]
        pictures = holdings.pictures.iloc[held][["image_id", "path", "group", "sha256", "number"]]
        pictures = pictures.assign(arrived=arrived.reindex(pictures["image_id"]).to_numpy()).reset_index(drop=True)
        of_items = pd.Series(positions).groupby(lines["item"].to_numpy()).agg(np.array)
        holders = dict.fromkeys(holdings.names, np.array([], np.int64))
        holders |= {holdings.names[code]: found for code, found in of_items.items()}
        return cls(snapshot.dataset, snapshot.read()[["image_id", "group", "sha256"]], pictures, holders)

    def find(self, item: str, *pictures: bytes) -> dict[str, Path]:
        """Return the files of pictures that show an item to somebody who is asked about other pictures, by their ids.

        pictures are the contents of the files in question: one, or with that before two. The dataset's own pictures are
        known by their bytes; a copy of one that shows the item, smaller or encoded anew, by how it looks. Raises
        SettingsError where there is no reference, and BadPicture where a picture cannot be read.
        """
        if item not in self.holders:
            raise SettingsError(_unknown(item, list(self.holders)))
        candidates = self._newest_first(self.pictures.iloc[self.holders[item]])
        own = pd.concat(self._own(candidates, picture) for picture in pictures)
        found = candidates[_are_apart(candidates, own)]
        found = found.drop_duplicates("group").drop_duplicates("sha256").head(MAX_REFERENCES)
        if found.empty:
            raise SettingsError(
                f"no other bin of train holds the item {item}, so that none shows it; give pictures that do as "
                "references"
            )
        return dict(zip(found["image_id"], found["file"], strict=True))

    def _newest_first(self, pictures: pd.DataFrame) -> pd.DataFrame:
        """Return the pictures whose files are there, with these; where it is not known when they came, by their ids."""
        files = [self.dataset / path for path in pictures["path"]]
        pictures = pictures.assign(file=files)[[file.is_file() for file in files]]
        return pictures.sort_values(["arrived", "image_id"], ascending=False, na_position="last")

    def _own(self, candidates: pd.DataFrame, picture: bytes) -> pd.DataFrame:
        """Return the rows of the dataset that are of the picture."""
        own = self.every[self.every["sha256"] == hashlib.sha256(picture).hexdigest()]
        if len(own):
            return own
        looks = inspect(picture, MAX_PIXELS, with_hash=True).dhash
        theirs = [inspect(file.read_bytes(), MAX_PIXELS, with_hash=True).dhash for file in candidates["file"]]
        distances = np.bitwise_count(np.array(theirs, np.uint64) ^ np.uint64(looks))
        return candidates[(distances <= MAX_DISTANCE) & (looks != 0)]  # a flat picture says nothing


def _unknown(item: str, names: list[str]) -> str:
    meant = ids.similar(item, pd.Series(names, dtype="str")) if names else []
    asked = f" ({' or '.join(meant)}?)" if meant else ""
    return (
        f"no bin holds an item {item}{asked}; the records of the snapshot list {len(names):,} items; correct it, or "
        "give pictures that show it as references"
    )


def _are_apart(candidates: pd.DataFrame, own: pd.DataFrame) -> np.ndarray:
    """Return which of the candidates are of other bins, of other bytes, and more than NEAR ids away."""
    padded = own.loc[ids.is_padded(own["image_id"]), "image_id"].astype(float).to_numpy()
    near = (np.abs(candidates["number"].to_numpy()[:, None] - padded) <= NEAR).any(axis=1)  # never of NaN
    same = candidates["group"].isin(own["group"]) | candidates["sha256"].isin(own["sha256"])
    return ~(near | same.to_numpy())
