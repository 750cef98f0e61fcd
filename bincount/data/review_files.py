"""Files of verdicts: read what a page of an audit, a spreadsheet or another tool has written, and check every row.

Form is taken as programs write it: a byte order mark or none, UTF-8, UTF-16 or the encoding of Windows, commas,
semicolons or tabs, columns in any order. Content is not guessed: a row that cannot be used is reported with its line.
"""

import csv
import io
import re
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from bincount.data import bins as row_store
from bincount.data import reviews, snapshots
from bincount.errors import DatasetError, SettingsError, SnapshotNotFound
from bincount.problem import normalize_name
from bincount.text import BLANKS, FORMULA

REQUIRED = ("image_id", "record", "verdict")
DEFAULTS = {"shown": "true", "random": "false"}  # of cells that are missing: what makes a verdict count for less
YES, NO = (
    ("true", "1", "yes", "wahr", "vrai"),
    ("false", "0", "no", "falsch", "faux", ""),
)  # as spreadsheets translate them
SEPARATORS = (",", ";", "\t")
MOST_ITEMS = 32_767  # as a manifest keeps it
EARLIEST = pd.Timestamp("2000-01-01", tz="UTC")  # of what a clock says that was set
AHEAD = pd.Timedelta(days=1)  # how far: a clock may be wrong by its time zone
MADE_HARMLESS = re.compile(f"'+[{BLANKS}]*[{re.escape(''.join(FORMULA))}]")  # text with an apostrophe before it
FAULT = "fault"  # column of why a row is none, where its form says so already
LINE = "line"  # column of where a row stands in its file; of a format without lines, its number


def read(path: Path) -> pd.DataFrame:
    """Read a file of verdicts as text: reviews.COLUMNS, and line. What kind of file it is follows from its content.

    Raises SettingsError where it cannot be read or is no such file.
    """
    try:
        start = path.read_bytes()[:1000].lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    except OSError as error:
        raise SettingsError(f"{path} cannot be read ({error.strerror}); correct the name of the file") from error
    if start == b"[":
        from bincount.data.review_formats import read_label_studio

        return _with_lines(read_label_studio(path))
    if start == b"{":
        from bincount.data.review_formats import read_fiftyone

        return _with_lines(read_fiftyone(path))
    return read_csv(path)


def read_csv(path: Path) -> pd.DataFrame:
    """Read verdicts.csv as text. Raises SettingsError where it lacks a column that verdicts need."""
    text = _decode(path.read_bytes())
    first, _, rest = text.partition("\n")
    if first.lower().startswith("sep="):  # by which Excel tells itself the separator
        first, text = rest.partition("\n")[0], rest
    separator = max(SEPARATORS, key=first.count)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        rows = list(_rows(lines, path))
    except csv.Error as error:
        raise SettingsError(f"{path} is no CSV (line {lines.line_num}: {error}); save it as CSV again") from error
    return pd.DataFrame(rows, columns=[LINE, FAULT, *reviews.COLUMNS])


def check(rows: pd.DataFrame, class_names: Collection[str] = ()) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the rows that can be used, with values as reviews.append takes them, and the others: line and reason.

    class_names are those that a verdict may name where classes are no counts; none means that they are counts.
    """
    texts = {name: _texts(rows[name]) if name in rows else pd.Series("", rows.index) for name in reviews.COLUMNS}
    table = pd.DataFrame(texts, index=rows.index).astype("str")
    for name in ("verdict", "record", "shown", "random"):
        table[name] = table[name].str.lower()
    is_count = table["verdict"] == reviews.COUNT
    count = table["count"].str.replace(r"[.,]0{1,2}$", "", regex=True) if not class_names else table["count"]
    if class_names:
        count = count.map(normalize_name)
        bad_count = is_count & ~count.isin(list(class_names))
    else:
        bad_count = is_count & ~count.str.fullmatch(r"\d{1,6}")
        number = pd.to_numeric(count.where(is_count & ~bad_count), errors="coerce")
        bad_count |= number > MOST_ITEMS
        count = number.astype("Int64").astype("str").where(number.notna(), "")
    when = pd.to_datetime(table["time"], format="ISO8601", utc=True, errors="coerce")
    newest = pd.Timestamp.now("UTC") + AHEAD
    p_wrong = pd.to_numeric(table["p_wrong"].str.replace(",", "."), errors="coerce")
    shown, chosen = (table[name].where(table[name] != "", DEFAULTS[name]) for name in ("shown", "random"))
    reasons = [
        (table["image_id"] == "", "it names no image_id"),
        (table["record"] == "", "it has no digest of the record"),
        (~table["verdict"].isin(reviews.VERDICTS), f"its verdict is none of {', '.join(reviews.VERDICTS)}"),
        (bad_count, f"its count is no class of the dataset: {_listed(class_names)}" if class_names else _NO_COUNT),
        ((table["time"] != "") & when.isna(), "its time is none, as 2026-01-31T12:00:00Z is one"),
        ((when < EARLIEST) | (when > newest), "its time is before 2000, or more than a day ahead of now"),
        (~shown.isin(YES + NO) | ~chosen.isin(YES + NO), "shown and random are true or false"),
        ((table["p_wrong"] != "") & ~p_wrong.between(0, 1), "its p_wrong is no probability"),
    ]
    if FAULT in rows:
        reasons.insert(0, (rows[FAULT] != "", rows[FAULT]))
    reason = pd.Series("", rows.index, dtype=object)
    for is_bad, text in reversed(reasons):  # so that the first of several reasons stays
        reason = reason.mask(is_bad, text)
    table = table.assign(
        count=count.where(is_count, ""),
        time=when,
        shown=shown.isin(YES),
        random=chosen.isin(YES),
        p_wrong=p_wrong,
    )
    good = reason == ""
    rejected = pd.DataFrame({LINE: rows.loc[~good, LINE], "reason": reason[~good]}).reset_index(drop=True)
    return table[good].reset_index(drop=True), rejected


def class_names(dataset: Path) -> set[str]:
    """Return the classes that a verdict on a dataset may name; none where they are counts.

    Raises SnapshotNotFound where nothing was fetched.
    """
    rows = row_store.read(dataset, ["image_id", "class_name", "quantity"])
    if rows.empty:
        raise SnapshotNotFound(f"no dataset in {dataset}; run `bincount prepare` with the same source to make one")
    if rows["quantity"].notna().any():
        return set()
    names = {normalize_name(name) for name in rows["class_name"].dropna().unique()}
    try:
        classes = snapshots.latest(dataset).classes
    except (SnapshotNotFound, DatasetError):
        return names
    return set() if classes.are_counts else names | set(map(normalize_name, classes.names))


_NO_COUNT = f"its count is no whole number of at most {MOST_ITEMS:,}"


def _decode(data: bytes) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", errors="replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")  # as Excel saves "CSV" on Windows


def _rows(lines, path: Path) -> Iterator[list]:
    """Yield line, fault and the cells of COLUMNS of each row that is not empty."""
    places, width, line = [], 0, 1
    for cells in lines:
        is_empty = not any(cell.strip() for cell in cells)
        if not places and not is_empty:
            places, width = _places(cells, path), len(cells)
        elif not is_empty:
            fault = f"it has {len(cells)} cells, and the head has {width}" if any(cells[width:]) else ""
            yield [line, fault, *(cells[place] if 0 <= place < len(cells) else "" for place in places)]
        line = lines.line_num + 1  # where the next row begins: a note may have several lines
    if not places:
        raise SettingsError(f"{path} is empty; name the file that the page of an audit has saved")


def _places(head: list[str], path: Path) -> list[int]:
    """Return the place of each of COLUMNS in a file's head, -1 where it has none."""
    names = [re.sub(r"[\s-]+", "_", name.strip().lower()) for name in head]
    if missing := [name for name in REQUIRED if name not in names]:
        raise SettingsError(
            f"{path} has no column {' and no '.join(missing)}, and so is no file of verdicts; they have the columns "
            f"{', '.join(reviews.COLUMNS)}, of which {', '.join(REQUIRED)} are needed"
        )
    if twice := [name for name in reviews.COLUMNS if names.count(name) > 1]:
        raise SettingsError(f"{path} has the column {twice[0]} twice; remove one of them")
    return [names.index(name) if name in names else -1 for name in reviews.COLUMNS]


def _with_lines(rows: pd.DataFrame) -> pd.DataFrame:
    return rows if LINE in rows else rows.reset_index(drop=True).assign(**{LINE: np.arange(1, len(rows) + 1)})


def _texts(column: pd.Series) -> pd.Series:
    """Return values of any kind as text, without what a writer has added so that no spreadsheet runs them."""
    texts = {value: _text(value) for value in column.dropna().unique()}
    if column.name != "image_id":  # a name of a file may begin with a blank
        texts = {value: text.strip() for value, text in texts.items()}
    return column.map(texts).fillna("").astype("str")


def _text(value: object) -> str:
    if isinstance(value, pd.Timestamp):
        return value.isoformat()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value).encode("utf-8", "replace").decode().replace("\0", "")
    return text[1:] if MADE_HARMLESS.match(text) else text


def _listed(names: Collection[str]) -> str:
    return ", ".join(sorted(names)[:10])
