"""The manifest: a dataset as a table with one row a bin, and the digest of the part that can be trained on.

image_id    str    the id in the source; a string, since 10 and 00010 are different bins
class_name  str    the class: what reviewers found, else what the record says; null where quarantined
recorded    str    what the record says, as a class name; null where quarantined
label_source str   record, or review where class_name is what reviewers found
quantity    Int16  the recorded number of items; null where classes are not counts
label       Int8   position of class_name among the classes; null for other classes
group       str    the bin that the image shows; images of one bin share it
split       str    train, val or test; extra where the image has no label and is trained on all the same; or null
path        str    the image file, relative to the dataset's folder
bytes       Int64  its size
sha256      str    its content
width, height  Int32  pixels
status      str    ok, or quarantined
reason      str    why it was quarantined; empty where it was not

A manifest of questions about pictures (see questions) has a row a question, and four columns more:

item        str    the item that is asked about; empty where none is
asked       Int16  the quantity that is asked; null where none is
held        Int16  how many of the item the record says; null where no item is asked about, or an older release asked
references  list of str  the SHA-256 of other pictures that belong to the question
"""

import hashlib

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from bincount.errors import DatasetError
from bincount.problem import EXTRA, SPLITS, Classes

RECORD, REVIEW = "record", "review"  # the sources of a label

COLUMNS = {
    "image_id": "str",
    "class_name": "str",
    "recorded": "str",
    "label_source": "str",
    "quantity": "Int16",
    "label": "Int8",
    "group": "str",
    "split": "str",
    "path": "str",
    "bytes": "Int64",
    "sha256": "str",
    "width": "Int32",
    "height": "Int32",
    "status": "str",
    "reason": "str",
}
REFERENCES, HELD = "references", "held"
OF_QUESTIONS = {"item": "str", "asked": "Int16", HELD: "Int16", REFERENCES: pd.ArrowDtype(pa.list_(pa.string()))}
ROWS_IN_PIECE = 50_000  # all lines at once would be gigabytes for millions of questions


def columns_of(manifest: pd.DataFrame) -> dict:
    """Return the columns that a manifest is to have, with their types: those of questions where it has references."""
    return COLUMNS | OF_QUESTIONS if REFERENCES in manifest else COLUMNS


def splits_of_bins(manifest: pd.DataFrame) -> pd.Series:
    """Return the split of each group that has one; train where its images are extra."""
    return manifest.dropna(subset="split").drop_duplicates("group").set_index("group")["split"].replace(EXTRA, "train")


def with_sources(manifest: pd.DataFrame) -> pd.DataFrame:
    """Return a manifest with recorded and label_source, also one of a release that knew no reviews.

    So have questions of a release that did not note how many of an item are held that column.
    """
    if REFERENCES in manifest and HELD not in manifest:
        manifest = manifest.copy(deep=False)
        manifest.insert(manifest.columns.get_loc(REFERENCES), HELD, pd.array([pd.NA] * len(manifest), "Int16"))
    if "label_source" in manifest:
        return manifest
    place = manifest.columns.get_loc("class_name") + 1
    manifest = manifest.copy(deep=False)
    manifest.insert(place, "recorded", manifest["class_name"])
    manifest.insert(place + 1, "label_source", pd.Series(RECORD, manifest.index, dtype="str"))
    return manifest


def is_corrected(manifest: pd.DataFrame) -> pd.Series:
    """Return of which rows reviewers found another class than the record's, (N,) bool."""
    return (manifest["label_source"] == REVIEW) & (manifest["recorded"] != manifest["class_name"])


def check(manifest: pd.DataFrame) -> None:
    """Raise DatasetError unless the manifest keeps the promises that training rests on."""
    missing = [column for column in columns_of(manifest) if column not in manifest]
    if missing:
        raise DatasetError(f"the manifest lacks the columns {', '.join(missing)}")
    if manifest["image_id"].duplicated().any():
        twice = manifest.loc[manifest["image_id"].duplicated(), "image_id"].iloc[0]
        raise DatasetError(f"{twice} is in the manifest twice")
    assigned = manifest[manifest["split"].notna()]
    known = (*SPLITS, EXTRA)
    if not assigned["split"].isin(known).all():
        raise DatasetError(
            f"splits are {', '.join(known)}; the manifest has {sorted(set(assigned['split']) - set(known))}"
        )
    if (assigned["status"] != "ok").any() or (assigned["label"].isna() != (assigned["split"] == EXTRA)).any():
        raise DatasetError("the manifest assigns images to splits that have no label or are quarantined")
    splits_per_group = assigned["split"].replace(EXTRA, "train").groupby(assigned["group"]).nunique()
    if (splits_per_group > 1).any():
        raise DatasetError(f"the group {splits_per_group.idxmax()} is in two splits")


def digest(manifest: pd.DataFrame, classes: Classes) -> str:
    """Return the name of what can be trained on: 32 hexadecimal digits over the rows with a split in order of id.

    The picture's own digest is part of it, so that a replaced photo is another snapshot. 32 digits fit MLflow's
    dataset digest, which takes at most 36. What the record says is part of a row where reviewers found another class:
    one that they confirm is no other snapshot. Of a question, what is asked, what is held and the references are
    part of its row.
    """
    assigned = manifest[manifest["split"].notna()].sort_values("image_id")
    sha = hashlib.sha256(classes.model_dump_json().encode())
    for start in range(0, len(assigned), ROWS_IN_PIECE):
        lines = _lines(assigned[start : start + ROWS_IN_PIECE])
        sha.update(("\n" * (start > 0) + "\n".join(lines)).encode())
    return sha.hexdigest()[:32]


def _lines(assigned: pd.DataFrame) -> pd.Series:
    """Return what of each row is part of the digest."""
    label = assigned["label"].astype("str").fillna(assigned["class_name"])
    lines = assigned["image_id"].str.cat([label, assigned["group"], assigned["split"], assigned["sha256"]], sep=" ")
    if "label_source" in assigned:  # an older release knew no reviews
        corrected = lines + f" {REVIEW} " + assigned["recorded"].fillna("")
        lines = lines.mask(is_corrected(assigned), corrected)
    if REFERENCES in assigned:
        references = pc.binary_join(pa.array(assigned[REFERENCES], pa.list_(pa.string())), " ").to_pandas()
        asked = assigned["asked"].astype("str").fillna("").to_numpy()
        lines = lines.str.cat([assigned["item"].to_numpy(), asked, references.to_numpy()], sep=" ")
        if assigned[HELD].notna().any():  # else they are named as older releases did
            lines = lines.str.cat(assigned[HELD].astype("str").fillna("").to_numpy(), sep=" ")
    return lines
