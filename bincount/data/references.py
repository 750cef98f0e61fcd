"""References for a question that somebody asks: pictures of a dataset that show an item, for one more picture.

As of the questions that models are trained on (see holdings), they are of train and of other bins than the picture in
question, one picture a bin, and at most MAX_REFERENCES. The newest come first: an item's package may have changed.
"""

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from bincount.data import bins, ids, items
from bincount.data.groups import MAX_DISTANCE
from bincount.data.holdings import MAX_REFERENCES, NEAR
from bincount.data.manifest import splits_of_bins
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
    - names: the items that records list
    - starts, holders: item n is on the pictures at the positions holders[starts[n] : starts[n + 1]]
    """

    dataset: Path
    every: pd.DataFrame
    pictures: pd.DataFrame
    names: pd.Series
    starts: np.ndarray
    holders: np.ndarray

    @classmethod
    def read(cls, snapshot: Snapshot) -> "ItemPhotos":
        """Read what a snapshot has, in Arrow's memory as far as that goes. Raises as Snapshot.read does."""
        manifest = snapshot.read()
        is_train = manifest["group"].map(splits_of_bins(manifest)) == "train"
        pictures = manifest.loc[is_train & (manifest["status"] == "ok"), ["image_id", "path", "group", "sha256"]]
        pictures = pictures.reset_index(drop=True)
        number = pictures["image_id"].where(ids.is_padded(pictures["image_id"])).astype(float)
        arrived = bins.read(snapshot.dataset, ["image_id", "arrived"])
        place = _positions(pictures["image_id"], arrived["image_id"])
        arrived = arrived["arrived"].take(place).where(place >= 0)
        pictures = pictures.assign(number=number, arrived=arrived.to_numpy())

        image_ids, lengths, listed = items.read_names(snapshot)
        position = np.repeat(_positions(image_ids, pictures["image_id"]), lengths)
        encoded = listed.dictionary_encode()
        code = encoded.indices.to_numpy()[position >= 0]
        holders = position[position >= 0][np.argsort(code, kind="stable")].astype(np.int32)
        starts = np.concatenate([[0], np.bincount(code, minlength=len(encoded.dictionary)).cumsum()])
        names = pd.Series(encoded.dictionary.to_pandas(), dtype="str")
        return cls(snapshot.dataset, manifest[["image_id", "group", "sha256"]], pictures, names, starts, holders)

    def find(self, item: str, *pictures: bytes) -> dict[str, Path]:
        """Return the files of pictures that show an item to somebody who is asked about other pictures, by their ids.

        pictures are the contents of the files in question: one, or with that before two. The dataset's own pictures are
        known by their bytes; a copy of one that shows the item, smaller or encoded anew, by how it looks. Raises
        SettingsError where there is no reference, and BadPicture where a picture cannot be read.
        """
        [codes] = np.nonzero(self.names == item)
        if not len(codes):
            raise SettingsError(_unknown(item, self.names))
        held = self.pictures.iloc[self.holders[self.starts[codes[0]] : self.starts[codes[0] + 1]]]
        candidates = held.sort_values(["arrived", "image_id"], ascending=False, na_position="last")
        is_own = [self.every["sha256"] == hashlib.sha256(picture).hexdigest() for picture in pictures]
        strangers = [picture for picture, own in zip(pictures, is_own, strict=True) if not own.any()]
        found = self._choose(candidates, _are_apart(candidates, self.every[np.any(is_own, axis=0)]), strangers)
        if not found:
            raise SettingsError(
                f"no other bin of train holds the item {item}, so that none shows it; give pictures that do as "
                "references"
            )
        return found

    def _choose(self, candidates: pd.DataFrame, usable: np.ndarray, strangers: list[bytes]) -> dict[str, Path]:
        """Return the files of the first usable candidates, one a bin, that are there, by their ids.

        Left out are those of which a picture of the same bin, or near it, looks like one of the strangers. Files are
        read until there are enough references: an item may be in thousands of bins.
        """
        files = [self.dataset / path for path in candidates["path"]]
        looks = np.array([_look(picture) for picture in strangers], np.uint64)
        looks = looks[looks != 0]  # a flat picture says nothing

        @cache
        def is_alike(place: int) -> bool:
            if not files[place].is_file():
                return False
            return bool((np.bitwise_count(looks ^ _look(files[place].read_bytes())) <= MAX_DISTANCE).any())

        image_id, group, content, number = (
            candidates[name].to_numpy() for name in ("image_id", "group", "sha256", "number")
        )
        found, taken = {}, set()
        for place in np.flatnonzero(usable):
            if len(found) == MAX_REFERENCES:
                break
            if {group[place], content[place]} & taken or not files[place].is_file():
                continue
            kin = (group == group[place]) | (np.abs(number - number[place]) <= NEAR)
            if len(looks) and any(is_alike(each) for each in np.flatnonzero(kin)):
                continue
            found[image_id[place]] = files[place]
            taken |= {group[place], content[place]}
        return found


def _look(picture: bytes) -> np.uint64:
    return np.uint64(inspect(picture, MAX_PIXELS, with_hash=True).dhash)


def _positions(some: pd.Series, others: pd.Series) -> np.ndarray:
    """Return where each of some texts is among others, -1 where it is not."""
    found = pc.index_in(pa.array(some, pa.string()), value_set=pa.array(others, pa.string()))
    return found.fill_null(-1).to_numpy()


def _unknown(item: str, names: pd.Series) -> str:
    meant = ids.similar(item, names)
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
