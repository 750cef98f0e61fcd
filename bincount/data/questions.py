"""The warehouse's other questions about pictures, as manifests that are trained and evaluated on as those of bins are.

- object: is the item in the bin? Pictures of other bins that hold it are the references.
- quantity: are there exactly so many of the item in the bin?
- change: by how many items did the count change since the picture before?

Nothing but pictures should tell the answer, so that these hold:

- The references are of other bins of train, at most eight, and none has an id next to that of the picture in question
  (see holdings).
- Each item is asked yes and no equally often in each split, with the same references, and so is each picture: the
  item of one yes is asked of the picture of another one, whose bin does not hold it.
- Each quantity is asked yes and no equally often in each split, and with each number of references.

How many of the item the record says is kept with each question, since a yes or no tells a training little of that.
Beside the questions about quantities are some of train that nobody is judged by, about items that are not there.

The answer is the record's. Pictures whose record reviewers found wrong are not asked about, and are no references.

What is drawn follows from hashes of ids, so that a dataset that grows keeps nearly all of its questions.
"""

import logging
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow as pa

from bincount.data import bins, pairs, snapshots
from bincount.data.holdings import Holdings, as_array, as_list, hash_ids, join
from bincount.data.manifest import COLUMNS, OF_QUESTIONS, RECORD, REFERENCES, is_corrected
from bincount.data.snapshots import Snapshot
from bincount.errors import DatasetError
from bincount.history import FARTHEST
from bincount.problem import EXTRA, SPLITS, Classes, Problem

logger = logging.getLogger(__name__)

COUNTING = "counting"  # the task without questions
OBJECT, QUANTITY, CHANGE = TASKS = ("object", "quantity", "change")
NO, YES = "no", "yes"
ANSWERS = Classes(names=(NO, YES), ordered=False)
ONE_OF_NONE = 3  # pictures of train is asked, for each item that it shows, about one that it does not show
LARGEST_CHANGE = 5  # items; farther changes count as the largest
CHANGES = Classes(names=tuple(map(str, range(-LARGEST_CHANGE, LARGEST_CHANGE + 1))), ordered=True)

PURPOSES = {
    OBJECT: "Says whether an item is in a bin, from a photo of it and photos of other bins that hold the item",
    QUANTITY: "Says whether a bin holds so many of an item, from a photo of it and photos of other bins with the item",
    CHANGE: "Says by how many items a bin's count changed, from the photos before and after",
}


def freeze(snapshot: Snapshot, task: str) -> Snapshot:
    """Freeze the questions of a task about the pictures of a snapshot, beside it; the snapshot stays the latest.

    Raises DatasetError where a split has no question, and as Snapshot.read does.
    """
    require_records(snapshot)
    table = {OBJECT: ask_objects, QUANTITY: ask_quantities, CHANGE: ask_changes}[task](snapshot)
    if missing := [split for split in SPLITS if not (table["split"] == split).any()]:
        raise DatasetError(
            f"there are no questions for --task {task} about bins of {', '.join(missing)}; fetch more bins "
            "(a larger --limit)"
        )
    classes = classes_of(task, snapshot.classes)
    words = {"answer": "change", "unit": "items"} if task == CHANGE else {"answer": "answer", "positive": YES}
    about = snapshot.problem
    problem = Problem(noun="question", purpose=PURPOSES[task], licence=about.licence, limits=about.limits, **words)
    return snapshots.freeze(table, classes, snapshot.source, snapshot.dataset, problem, as_latest=False)


def ask(snapshot: Snapshot, task: str) -> Snapshot:
    """Return what models of a task are trained on: questions about a snapshot's pictures, or for counting itself.

    A snapshot of questions of the task is returned as it is. Raises DatasetError for one of another task, and as freeze
    does.
    """
    if task == COUNTING:
        return snapshot
    manifest = snapshot.read()
    if REFERENCES not in manifest:
        return freeze(snapshot, task)
    if (found := _task_of(manifest)) != task:
        raise DatasetError(
            f"the snapshot holds questions of the task {found}; give --task {found}, or --snapshot of the bins that "
            "they are about"
        )
    return snapshot


def _task_of(manifest: pd.DataFrame) -> str:
    """Return the task of a manifest's questions, by its columns: changes have no item, and objects no quantity."""
    if (manifest["item"] == "").all():
        return CHANGE
    return OBJECT if manifest["asked"].isna().all() else QUANTITY


def require_records(snapshot: Snapshot) -> None:
    """Raise DatasetError where nothing can be asked about a snapshot's pictures: no record says what is in a bin."""
    manifest = snapshot.read()
    if REFERENCES in manifest:
        raise DatasetError("the snapshot holds questions already; give --snapshot of the bins that they are about")
    if manifest["quantity"].isna().all():
        raise DatasetError(
            f"{snapshot.source} has no records of items, and only these are asked about; leave out --task"
        )


def classes_of(task: str, classes: Classes) -> Classes:
    """Return the answers to the questions of a task; for counting the classes themselves."""
    return classes if task == COUNTING else CHANGES if task == CHANGE else ANSWERS


def list_pictures(frozen: Snapshot, split: str | None = None) -> pd.DataFrame:
    """List the pictures of frozen questions, or of those of one split, the references too.

    Each has path, sha256, width and height, as a pack takes them.
    """
    rows = frozen.read()
    rows = rows[rows["split"].isin([split] if split else [*SPLITS, EXTRA])]
    used = pd.concat([rows["sha256"], pd.Series(as_array(rows[REFERENCES]).flatten(), dtype="str")]).drop_duplicates()
    columns = ["path", "sha256", "width", "height"]
    known = bins.read(frozen.dataset, ["image_id", *columns, "status"])
    known = known[(known["status"] == "ok") & snapshots.is_in(known["sha256"], used)]
    return known.drop_duplicates("sha256")[columns].reset_index(drop=True)


def ask_objects(snapshot: Snapshot) -> pd.DataFrame:
    """Ask of pictures whether an item is in the bin, as a manifest with the columns of questions.

    Raises DatasetError where no item is in two bins.
    """
    holdings = Holdings.of(snapshot)
    yes, no = holdings.pair_with_negatives(_positives(holdings))
    yes, no = yes.assign(label=1, held=yes["quantity"]), no.assign(label=0, held=0)
    return as_manifest(holdings, pd.concat([yes, no], ignore_index=True))


def ask_quantities(snapshot: Snapshot) -> pd.DataFrame:
    """Ask of pictures that show an item whether so many of it are in the bin: 1 to the largest class.

    A manifest with the columns of questions. Extra rows, which are trained on alone, ask for 0 of an item that is not
    there. Raises DatasetError where no item is in two bins.
    """
    holdings = Holdings.of(snapshot)
    positives = _positives(holdings)
    rows = balance_quantities(positives, largest_quantity(snapshot))
    rows = pd.concat([rows.assign(held=rows["quantity"]), _ask_for_none(holdings, positives)], ignore_index=True)
    return as_manifest(holdings, rows.assign(id=join(rows["id"], rows["asked"].astype("str"))))


def _ask_for_none(holdings: Holdings, positives: pd.DataFrame) -> pd.DataFrame:
    """Ask of some pictures of train whether there are 0 of an item that is in another bin, and not in theirs."""
    of_train = positives[positives["split"] == "train"]
    chosen = hash_ids(of_train["id"]) % np.uint64(ONE_OF_NONE) == 0
    _, none = holdings.pair_with_negatives(of_train[chosen].reset_index(drop=True))
    return none.assign(asked=0, held=0, label=pd.NA)


def _positives(holdings: Holdings) -> pd.DataFrame:
    positives = holdings.find_positives()
    if positives.empty:
        raise DatasetError(
            "no item is in a bin of train and in another bin, so that none can be asked about; fetch more bins"
        )
    return positives


def largest_quantity(snapshot: Snapshot) -> int:
    """Return the largest quantity that is asked: that of the classes, where they are counts, else that of 0..5."""
    return int(max(snapshot.classes.values)) if snapshot.classes.are_counts else 5


def balance_quantities(shown: pd.DataFrame, largest: int) -> pd.DataFrame:
    """Ask the quantities 1..largest of items that are shown, each as often for a yes as for a no.

    That holds in each split and for each number of references. shown has id, quantity, split and references, a row an
    item of a picture. Returns its rows with asked and label, some of them several times. Where one answer has fewer, so
    many of the other are taken, those with the smallest hashes.
    """
    cell = shown["split"] + " " + shown[REFERENCES].list.len().astype("str")
    asked, num_dropped = [], 0
    for quantity in range(1, largest + 1):
        is_right = (shown["quantity"] == quantity).to_numpy()
        place = pd.Series(hash_ids(shown["id"], quantity), index=shown.index).groupby([cell, is_right]).rank("first")
        fewer = pd.crosstab(cell, is_right).reindex(columns=[False, True], fill_value=0).min(axis=1)
        kept = place <= cell.map(fewer)
        num_dropped += int((is_right & ~kept).sum())
        asked.append(shown[kept].assign(asked=quantity, label=is_right[kept].astype(int)))
    if num_dropped:
        logger.info(
            "%s questions with the answer yes are left out: too few pictures show another quantity of an item",
            f"{num_dropped:,}",
        )
    return pd.concat(asked, ignore_index=True)


def ask_changes(snapshot: Snapshot) -> pd.DataFrame:
    """Ask by how many items the count of a bin changed between two pictures, as a manifest with a row a pair.

    The row is of the later picture, and its only reference is the earlier one. item is empty, and asked null.
    Raises DatasetError where no bin has two pictures.
    """
    return _ordered(_as_questions(snapshot, find_pairs(snapshot)))


def verify_changes(snapshot: Snapshot) -> pd.DataFrame:
    """Ask of pairs of pictures whether the count changed by so many items: once by the true change, once by another.

    The wrong changes are those of other pairs with the same count before: in each split, and for each count before,
    every change is asked as often where it is right as where it is wrong. So pairs are left out where one change is
    more frequent than all others together. Returns a manifest with the columns of questions; beside them pair, the id
    in ask_changes, and count_before. Raises DatasetError where no bin has two pictures.
    """
    found = find_pairs(snapshot)
    rows = _as_questions(snapshot, found)
    change = rows["label"] - LARGEST_CHANGE
    cells = [found["split"], found["count_before"].clip(upper=FARTHEST)]
    wrong = pd.concat(other_changes(changes, rows["image_id"]) for _, changes in change.groupby(cells))
    rows = rows.assign(pair=rows["image_id"], count_before=found["count_before"]).loc[wrong.index]
    asked = pd.concat([change[wrong.index], wrong], ignore_index=True)
    both = pd.concat([rows.assign(label=1), rows.assign(label=0)], ignore_index=True).assign(asked=asked)
    both = both.assign(image_id=join(both["pair"], asked.astype("str")), **_answers(both["label"]))
    return _ordered(both, ["pair", "count_before"])


def of_asked(asked: pd.DataFrame, ids: pd.Series, probabilities: np.ndarray) -> np.ndarray:
    """Return the probability of the change that each row asks, (N,): that of its pair among the ids, (M,) of (M, C)."""
    place = pd.Series(np.arange(len(ids)), index=ids)
    return probabilities[place[asked["pair"]], asked["asked"].to_numpy(np.int64) + LARGEST_CHANGE]


def find_pairs(snapshot: Snapshot) -> pd.DataFrame:
    """Return the pairs that can be asked about, as pairs.read does: of bins with a split, and no record refuted.

    Raises DatasetError where no bin has two pictures.
    """
    found, manifest = pairs.read(snapshot), snapshot.read()
    wrong = manifest.loc[is_corrected(manifest), "image_id"]
    refuted = snapshots.is_in(found["before"], wrong) | snapshots.is_in(found["after"], wrong)
    found = found[found["split"].notna() & ~refuted].reset_index(drop=True)
    if found.empty:
        raise DatasetError("no bin has two pictures, before and after a change; questions about changes need them")
    return found


def _as_questions(snapshot: Snapshot, found: pd.DataFrame) -> pd.DataFrame:
    """Return the manifest of changes, in the order of the pairs that were found."""
    pictures = snapshot.read().set_index("image_id").loc[found["after"]].reset_index(drop=True)
    change = found["change"].clip(-LARGEST_CHANGE, LARGEST_CHANGE).astype(np.int64)
    name = change.astype("str")
    rows = pictures.assign(
        image_id=join(found["before"], found["after"]),
        class_name=name,
        recorded=name,
        label_source=RECORD,
        label=change + LARGEST_CHANGE,
        group=found["group"],
        split=found["split"],
        item="",
        asked=pd.NA,
        held=pd.NA,
    )
    return rows.assign(**{REFERENCES: as_list(np.ones(len(rows), np.int64), pa.array(found["sha256_before"]))})


def other_changes(changes: pd.Series, ids: pd.Series) -> pd.Series:
    """Return for each of the pairs another pair's change that differs, each change as often as it occurs.

    In order of change, a pair gets the change of the one that is half of all pairs further. The two differ unless one
    change has more than half of the pairs; so many of those are left out.
    """
    table = pd.DataFrame({"change": changes, "order": hash_ids(ids[changes.index])}).sort_values(["change", "order"])
    by_change = table.groupby("change")["change"]
    table = table[by_change.cumcount() < len(table) - by_change.transform("size")]
    return pd.Series(np.roll(table["change"], len(table) // 2), index=table.index, dtype=np.int64)


def as_manifest(holdings: Holdings, rows: pd.DataFrame, beside: Sequence[str] = ()) -> pd.DataFrame:
    """Write questions as a manifest, sorted by id, with some columns of rows beside.

    rows has id, picture (a position), item (a code), references (positions), label (0 is no, 1 is yes, missing in extra
    rows, whose answer is yes), asked where quantities are, and held where that is known.
    """
    pictures, positions = holdings.pictures, rows["picture"].to_numpy()
    of_picture = {name: pictures[name].take(positions).reset_index(drop=True) for name in COLUMNS}
    references = as_array(rows[REFERENCES])
    digests = pa.array(pictures["sha256"]).take(references.flatten())
    is_extra = rows["label"].isna()
    of_picture["split"] = of_picture["split"].mask(is_extra, EXTRA)
    table = pd.DataFrame(of_picture).assign(
        image_id=rows["id"],
        label=rows["label"],
        label_source=RECORD,
        item=holdings.names.take(rows["item"]).to_numpy(),
        asked=rows.get("asked", pd.NA),
        held=rows.get("held", pd.NA),
        **_answers(rows["label"].fillna(1)),
        **{REFERENCES: as_list(references.value_lengths(), digests)},
        **{name: rows[name] for name in beside},
    )
    return _ordered(table, beside)


def _answers(labels: pd.Series) -> dict[str, pd.Series]:
    name = labels.map({0: NO, 1: YES}).astype("str")
    return {"class_name": name, "recorded": name}


def _ordered(rows: pd.DataFrame, beside: Sequence[str] = ()) -> pd.DataFrame:
    columns = COLUMNS | OF_QUESTIONS
    rows = rows[[*columns, *beside]].astype(columns)
    return rows.sort_values("image_id", ignore_index=True)
