"""The verdicts of people on bins: an append-only table in the dataset's folder, and what follows from it.

    reviews/TIME-DIGEST.parquet   the rows of one import, or of one undo; no file is ever changed

A record and a photo are never edited. A verdict is about one bin and one state of it, and counts as long as the record
has the digest that was reviewed, and the photo the one that it had at the import; after that it is void. Verdicts that
are undone stay, and a row says so.
Several processes may append at a time, and others read.
"""

import getpass
import hashlib
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pyarrow as pa

from bincount import files
from bincount.data import bins as row_store
from bincount.data import tables
from bincount.data.snapshots import is_in
from bincount.errors import DatasetError, SettingsError
from bincount.problem import normalize_name

logger = logging.getLogger(__name__)

FOLDER, LOCK = "reviews", ".lock"  # in the dataset's folder; within that
VERDICTS = RIGHT, COUNT, UNUSABLE, UNSURE = ("right", "count", "unusable", "unsure")
UNDONE = "undone"  # verdict of a row that takes another one back
REMEDY = "restore it from a copy, or remove it and import its verdicts again with `bincount review import`"

# As files of verdicts have them, in this order. count is the class name where classes are no counts.
COLUMNS = (
    "image_id",
    "record",
    "verdict",
    "count",
    "reviewer",
    "time",
    "source",
    "model",
    "shown",
    "random",
    "p_wrong",
    "note",
)
SAID = ("image_id", "record", "verdict", "count", "reviewer", "time")  # by which a verdict is known: who said what when
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        *((name, pa.string()) for name in COLUMNS[:5]),
        ("time", pa.timestamp("us")),  # UTC; of the import where the file says none
        *((name, pa.string()) for name in ("source", "model")),
        ("shown", pa.bool_()),
        ("random", pa.bool_()),
        ("p_wrong", pa.float64()),
        ("note", pa.string()),
        (
            "recorded",
            pa.string(),
        ),  # class in the reviewed record; empty where the bin had another, or none
        ("undoes", pa.string()),  # id of the row that this one takes back
        ("imported", pa.timestamp("us")),
        ("file", pa.string()),
        ("batch", pa.string()),  # by which an import is known: the digest of the file's content
        ("picture", pa.string()),  # SHA-256 of the bin's; empty where an older release has imported it
    ]
)
BIN_COLUMNS = [
    "image_id",
    "class_name",
    "record_sha256",
    "sha256",
    "status",
]  # of a dataset's rows, as verdicts are compared with


def read(dataset: Path) -> pd.DataFrame:
    """Return all rows in the order in which they were written; none where nothing was reviewed.

    Raises DatasetError where a file is damaged.
    """
    parts = [tables.read(path, REMEDY, schema=SCHEMA) for path in paths(dataset)]
    rows = (pa.concat_tables(parts) if parts else SCHEMA.empty_table()).to_pandas()
    texts = {field.name: "str" for field in SCHEMA if pa.types.is_string(field.type)}
    rows["picture"] = rows["picture"].fillna("")
    return rows.astype(texts).drop_duplicates("id", ignore_index=True)


def paths(dataset: Path) -> list[Path]:
    """Return the table's files in the order in which they were written."""
    return sorted((dataset / FOLDER).glob("[!.]*.parquet"))


def append(dataset: Path, rows: pd.DataFrame, *, file: str = "", batch: str = "") -> int:
    """Add verdicts, whole or not at all, and return how many are new: one that is in force is not added again.

    rows have COLUMNS, with usable values as review_files.check returns them; file and batch name the import. An id that
    has lost its leading zeros, as a spreadsheet takes them away, gets them back where the record tells whose they are.
    Raises DiskFull, and DatasetError where the table is damaged.
    """
    with _locked(dataset):
        bins = row_store.read(dataset, BIN_COLUMNS)
        when = pd.to_datetime(rows["time"], utc=True).dt.tz_convert(None).dt.as_unit("us")
        rows = _restore_zeros(rows.assign(time=when), bins)
        now = _now()
        table = read(dataset)
        ids = _ids(rows)
        is_new = ~_is_in_force(rows, ids, table, now) & ~ids.duplicated(keep="last")
        salted = _ids(rows.assign(imported=str(now)), (*SAID, "imported"))
        new = rows.assign(id=ids.where(~is_in(ids, table["id"]), salted))[is_new]
        current = _current(new, bins)
        is_same = current["record"] == new["record"]
        _write(
            dataset,
            new.assign(
                time=new["time"].fillna(now),
                recorded=current["class_name"].where(is_same).fillna(""),
                picture=current["picture"].where(is_same).fillna(""),
                undoes="",
                imported=now,
                file=file,
                batch=batch,
            ),
        )
    return len(new)


def undo(dataset: Path, ids: Sequence[str], reviewer: str = "") -> int:
    """Take rows back by adding one for each that says so; return how many: those that are undone already are not.

    The row of an undo can be taken back too, which brings the verdict back.
    """
    with _locked(dataset):
        rows = read(dataset)
        wanted = rows[rows["id"].isin(list(ids)) & ~_is_undone(rows)]
        now = _now()
        undone = wanted.assign(
            verdict=UNDONE,
            count="",
            reviewer=reviewer or _user(),
            time=now,
            source="",
            model="",
            shown=False,
            random=False,
        ).assign(p_wrong=float("nan"), note="", recorded="", undoes=wanted["id"], imported=now, file="", batch="")
        undone["id"] = _ids(undone, (*SAID, "undoes"))
        _write(dataset, undone)
    return len(undone)


def find(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return the verdicts of a bin, or the row of an id, that are not undone. Raises SettingsError without any."""
    alive = rows[~_is_undone(rows)]
    found = alive[(alive["image_id"] == name) & (alive["verdict"] != UNDONE)]
    if found.empty:
        found = alive[alive["id"] == name]
    if found.empty:
        raise SettingsError(
            f"{name} has no verdict, and is no verdict's id, or is undone already; `bincount review list` shows them"
        )
    return found


def find_import(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return the rows of an import that are not undone, by the file as it is now, or by the import's id.

    Raises SettingsError where there was none.
    """
    batch = digest_of(Path(name)) if Path(name).is_file() else name
    imported = rows[(rows["batch"] == batch) & (batch != "")]
    if imported.empty:
        raise SettingsError(
            f"{name} was not imported, or has changed since; name the import by its id, as "
            "`bincount review list` shows it"
        )
    return imported[~_is_undone(imported, rows)]


def digest_of(path: Path) -> str:
    """Return the id of the import of a file: eight hexadecimal digits of its content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:8]


def resolve(rows: pd.DataFrame, bins: pd.DataFrame) -> pd.DataFrame:
    """Return what verdicts say of bins as their records are now, a row a bin, sorted by image_id; see judge.

    bins have BIN_COLUMNS, as the dataset's rows have them. A verdict is void where the record or the photo is another
    one now.
    """
    verdicts = current_verdicts(rows, bins)
    return judge(verdicts).drop(columns="record")


def current_verdicts(rows: pd.DataFrame, bins: pd.DataFrame) -> pd.DataFrame:
    """Return the verdicts that are neither undone nor void, with the class name that the record has."""
    alive = rows[~_is_undone(rows) & (rows["verdict"] != UNDONE)]
    if alive.empty:  # in most datasets, whose digests would take a second
        return alive
    current = _current(alive, bins)
    has_its_picture = (alive["picture"] == "") | (current["picture"] == alive["picture"])
    same = (current["record"] == alive["record"]) & has_its_picture
    return alive[same].assign(recorded=current.loc[same, "class_name"])


def past_verdicts(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the verdicts that are not undone, of records as they were when they were reviewed.

    Whoever counts wrong records counts these: a record that was corrected since is a void verdict, and was wrong.
    """
    return rows[~_is_undone(rows) & (rows["verdict"] != UNDONE) & (rows["recorded"] != "")]


def random_share(dataset: Path) -> pd.DataFrame:
    """Return what was found in bins of the random share that reviewers are sure of: recorded_count and true_count.

    Both are class names. Of these alone is the rate of wrong records known without bias.
    """
    judged = judge(past_verdicts(read(dataset)))
    found = judged[judged["random"] & judged["class_name"].notna()]
    names = {"recorded": "recorded_count", "class_name": "true_count"}
    return found[[*names]].rename(columns=names).reset_index(drop=True)


def judge(verdicts: pd.DataFrame) -> pd.DataFrame:
    """Return what reviewers together say of each bin and record, a row each, sorted by image_id.

    The columns are image_id, record, recorded, outcome (right, count, unusable or unsure), class_name (what was found;
    missing where unusable or unsure), num_reviewers, is_disputed, random (any of its verdicts is of the random share)
    and time (when it was first reviewed). The latest verdict of each reviewer counts, and "right" is the count of the
    record. What more than half of those say who are sure is the outcome; without such a majority it is unsure.
    """
    last = latest(verdicts).assign(answer=answers)
    last["bin"] = pd.factorize(last["image_id"] + " " + last["record"])[
        0
    ]  # numbers, which are grouped ten times as fast
    votes = last[last["answer"] != UNSURE].groupby(["bin", "answer"]).size().rename("votes").reset_index()
    most = votes.sort_values(["bin", "votes"]).drop_duplicates("bin", keep="last").set_index("bin")
    total = votes.groupby("bin")["votes"].sum()
    of_bin = last.groupby("bin")
    table = last.drop_duplicates("bin").set_index("bin")[["image_id", "record", "recorded"]].sort_index()
    table = table.assign(num_reviewers=of_bin.size(), random=of_bin["random"].any(), time=of_bin["time"].min())
    most, total = most.reindex(table.index), total.reindex(table.index)
    has_won = 2 * most["votes"] > total
    answer = most["answer"].where(has_won, UNSURE).astype("str")
    is_class = answer.str.startswith(f"{COUNT} ")
    table["class_name"] = answer.str.removeprefix(f"{COUNT} ").where(is_class)
    outcome = answer.mask(is_class, COUNT).mask(is_class & (table["class_name"] == table["recorded"]), RIGHT)
    table = table.assign(outcome=outcome, is_disputed=most["votes"] < total)
    names = ["recorded", "outcome", "class_name", "num_reviewers", "is_disputed", "random", "time"]
    return table[["image_id", "record", *names]].sort_values(["image_id", "record"], ignore_index=True)


def latest(verdicts: pd.DataFrame) -> pd.DataFrame:
    """Return the latest verdict of each reviewer on each bin and record."""
    in_order = verdicts.sort_values("time", kind="stable")
    return in_order.drop_duplicates(["image_id", "record", "reviewer"], keep="last").sort_index()


def answers(verdicts: pd.DataFrame) -> pd.Series:
    """Return what each verdict says, so that two that say the same are equal: `count 3`, unusable or unsure."""
    found = verdicts["recorded"].where(verdicts["verdict"] == RIGHT, verdicts["count"]).map(normalize_name)
    return verdicts["verdict"].where(~verdicts["verdict"].isin([RIGHT, COUNT]), f"{COUNT} " + found)


def states(rows: pd.DataFrame, bins: pd.DataFrame) -> pd.Series:
    """Return the state of each row: valid, disputed, superseded, void, undone; undo for one that takes another back."""
    valid = current_verdicts(rows, bins)
    last = latest(valid)
    judged = judge(valid)
    disputed = judged.loc[judged["is_disputed"], "image_id"]
    state = pd.Series("void", index=rows.index)
    state[valid.index] = "superseded"
    state[last.index] = "valid"
    state[last.index[last["image_id"].isin(disputed)]] = "disputed"
    state[rows["verdict"] == UNDONE] = "undo"
    state[_is_undone(rows)] = UNDONE
    return state


def _is_undone(rows: pd.DataFrame, all_rows: pd.DataFrame | None = None) -> pd.Series:
    """Return whether each row is taken back, where the row that does so is not taken back itself."""
    every = rows if all_rows is None else all_rows
    undone: set[str] = set()
    undoes = every.loc[every["undoes"] != "", ["id", "undoes"]]
    for row_id, target in zip(undoes["id"][::-1], undoes["undoes"][::-1], strict=True):  # the last ones first
        if row_id not in undone:
            undone.add(target)
    return rows["id"].isin(undone) if undone else pd.Series(False, index=rows.index)


def _is_in_force(rows: pd.DataFrame, ids: pd.Series, table: pd.DataFrame, now: pd.Timestamp) -> pd.Series:
    """Return whether each of the rows to be added, whose ids are those of _ids, is in the table and counts.

    One without a time counts while it is the latest of its reviewer on that bin and record; of several such in a file,
    this is asked of the last only.
    """
    has_no_time = table["time"] == table["imported"]
    said = _ids(table.assign(time=table["time"].mask(has_no_time)))  # ids of before they were salted
    alive = table[~_is_undone(table) & (table["verdict"] != UNDONE)]
    last = latest(alive[alive["time"] <= now])
    untimed = rows[rows["time"].isna()]
    asked = untimed.index[~untimed.duplicated(["image_id", "record", "reviewer"], keep="last")]
    return is_in(ids, said[alive.index]) & (~rows.index.isin(asked) | is_in(ids, said[last.index]))


def _current(rows: pd.DataFrame, bins: pd.DataFrame) -> pd.DataFrame:
    """Return the record's digest and class name and the picture's digest of each row's bin now, missing without any."""
    good = bins[bins["status"] == "ok"]
    spellings = {name: normalize_name(name) for name in good["class_name"].dropna().unique()}
    records = pd.DataFrame(
        {
            "record": row_store.record_digests(good).to_numpy(),
            "class_name": good["class_name"].map(spellings).to_numpy(),
            "picture": good["sha256"].to_numpy(),
        },
        index=good["image_id"].to_numpy(),
    )
    return records.reindex(rows["image_id"]).set_axis(rows.index)


def _restore_zeros(rows: pd.DataFrame, bins: pd.DataFrame) -> pd.DataFrame:
    """Return rows with the ids that a spreadsheet has made numbers of: 523 for 00523."""
    lost = ~is_in(rows["image_id"], bins["image_id"]) & rows["image_id"].str.fullmatch(r"\d+")
    if not lost.any():
        return rows
    padded = bins[bins["image_id"].str.fullmatch(r"0\d+") & (bins["status"] == "ok")]
    ids: dict[tuple[str, str], str | None] = {}
    for image_id, digest in zip(padded["image_id"], row_store.record_digests(padded), strict=True):
        key = (image_id.lstrip("0") or "0", digest)
        ids[key] = None if key in ids else image_id
    keys = zip(rows.loc[lost, "image_id"], rows.loc[lost, "record"], strict=True)
    restored = pd.Series([ids.get(key) for key in keys], index=rows.index[lost], dtype="str")
    logger.info("%d ids had lost their leading zeros, and have them again", restored.notna().sum())
    return rows.assign(image_id=restored.reindex(rows.index).fillna(rows["image_id"]))


def _ids(rows: pd.DataFrame, said: Sequence[str] = SAID) -> pd.Series:
    """Return for each row 16 hexadecimal digits of what was said, by whom and when."""
    when = rows["time"].dt.strftime("%Y-%m-%dT%H:%M:%S.%f").fillna("")
    texts = rows.assign(time=when)[list(said)].astype("str")
    lines = texts["image_id"].str.cat([texts[name] for name in said[1:]], sep="\0").to_list()
    return pd.Series([hashlib.sha256(line.encode()).hexdigest()[:16] for line in lines], rows.index, dtype="str")


def _write(dataset: Path, rows: pd.DataFrame) -> None:
    if len(rows):
        digest = hashlib.sha256("".join(rows["id"]).encode()).hexdigest()[:8]
        table = pa.Table.from_pandas(rows[SCHEMA.names], SCHEMA, preserve_index=False)
        tables.write(table, dataset / FOLDER / f"{time.time_ns():020d}-{digest}.parquet", tables.ROWS_IN_PIECE)


def _locked(dataset: Path):
    if not dataset.is_dir():
        raise DatasetError(f"no dataset in {dataset}; name the --source that was reviewed, or run `bincount prepare`")
    (dataset / FOLDER).mkdir(exist_ok=True)
    return files.locked(dataset / FOLDER / LOCK, f"another process adds verdicts in {dataset}")


def _now() -> pd.Timestamp:
    return pd.Timestamp.now("UTC").tz_localize(None).as_unit("us")


def _user() -> str:
    with suppress(OSError, KeyError, ImportError):  # a container may run as a user without a name
        return getpass.getuser()
    return ""
