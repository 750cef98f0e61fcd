"""Where a bin was used, and where its picture lies: snapshots, splits, trainings, versions, evaluations, packs.

A bin is followed by its id and by the content of its pictures: a picture that was replaced is found in the snapshots of
before, and a copy under another id is the same picture.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from bincount.data import bins, folds, forgotten, ids, snapshots, tables
from bincount.data.holdings import as_array
from bincount.data.manifest import REFERENCES
from bincount.errors import BincountError, DatasetError
from bincount.places import SHORT, Places
from bincount.problem import EXTRA
from bincount.tracking import usage
from bincount.tracking.registry import Registry
from bincount.tracking.usage import Artifact, VersionUse
from bincount.training.run_folder import read_request
from bincount.workspace import Workspace

SOURCE_OF_LABEL = "label_source"  # a column of the manifests since people review records
RECORD = "record"  # whose a label is where the manifest does not say
SCHEMA = pa.schema(
    [
        (name, pa.string())
        for name in ("image_id", "class_name", "split", "group", "path", "sha256", "reason", SOURCE_OF_LABEL)
    ]
)
ROW_COLUMNS = ["image_id", "class_name", "record_tag", "path", "sha256", "status", "reason"]
TRAINED = "trained on"
ROLES = {"train": TRAINED, EXTRA: TRAINED, "val": "chose the epoch", "test": "tested on"}


@dataclass(frozen=True)
class Use:
    """A bin in one snapshot: its picture, its label and whose that is, its split, and what was made of the snapshot.

    bin_id is another than the one that was asked for where the picture is the same. split is empty where the bin was
    not used, and reason says why. trainings maps the names of folders to what each did with the bin.
    """

    bin_id: str
    sha256: str
    snapshot: str
    frozen: datetime
    label: str
    label_source: str
    split: str
    reason: str
    trainings: Mapping[str, str] = field(default_factory=dict)
    versions: tuple[VersionUse, ...] = ()


@dataclass(frozen=True)
class Provenance:
    """What is known of one bin.

    status, reason and class_name are those of its row now, empty where it has none. digests are those of all pictures
    that it had, and copies the other bins that have or had one of
    them, of which holders have it now. Paths are relative to the workspace: files are originals
    and records, packs the folders of packs with a picture, folders the evaluations and audits with the bin. elsewhere
    names bins of other datasets of the workspace that have the picture, as `DATASET: ID`.
    """

    image_id: str
    status: str
    reason: str
    class_name: str
    digests: tuple[str, ...]
    copies: tuple[str, ...]
    holders: tuple[str, ...]
    uses: tuple[Use, ...]
    verdicts: tuple[Mapping[str, str], ...]
    files: tuple[str, ...]
    packs: tuple[str, ...]
    folders: tuple[str, ...]
    elsewhere: tuple[str, ...]

    @property
    def versions(self) -> tuple[VersionUse, ...]:
        """The versions whose snapshot has the bin in a split."""
        return tuple(dict.fromkeys(version for use in self.uses if use.split for version in use.versions))

    @property
    def trained_versions(self) -> tuple[VersionUse, ...]:
        """Those of them that were trained on the bin, or whose epoch was chosen by it."""
        used = [use for use in self.uses if use.split and use.split != "test"]
        return tuple(dict.fromkeys(version for use in used for version in use.versions))


@dataclass(frozen=True)
class Traced:
    """The bins that were asked for, in words what could not be read, and the files of bins and their copies.

    files are rows as forgotten.add takes them.
    """

    bins: tuple[Provenance, ...]
    problems: tuple[str, ...]
    files: pd.DataFrame


def trace(workspace: Workspace, dataset: Path, image_ids: Sequence[str], versions: Iterable[VersionUse] = ()) -> Traced:
    """Find where bins of a dataset were used; versions are all those of the registry.

    Raises DatasetError for an id that neither the dataset nor one of its snapshots has, naming those that are like it.
    """
    wanted, problems = list(dict.fromkeys(image_ids)), {}
    rows, tombstones = bins.read(dataset, ROW_COLUMNS), forgotten.read_rows(dataset)
    digests = _digests_of(wanted, [rows, tombstones])
    used = _read_uses(dataset, wanted, digests, problems)
    replaced = _digests_of(wanted, used.values()) - digests
    if replaced:  # pictures of before, which other bins may have too
        digests |= replaced
        used = _read_uses(dataset, wanted, digests, problems)
    _require_known(wanted, rows["image_id"], [tombstones, *used.values()])
    uses = [use for folder, table in used.items() for use in _uses(workspace, folder, table, list(versions))]
    here = rows[rows["image_id"].isin(wanted) | rows["sha256"].isin(digests)]
    places = Places(workspace, dataset, digests, problems)
    found = [_describe(image_id, [rows, tombstones, *used.values()], here, uses, places) for image_id in wanted]
    gone = {*wanted, *(copy for each in found for copy in each.holders)}
    return Traced(tuple(found), tuple(problems), _files_of(rows[rows["image_id"].isin(gone)], gone, digests, used))


def find_artifacts(registry: Registry, found: Provenance) -> list[Artifact]:
    """Return the files in MLflow that show one of a bin's pictures, or may. Raises ServiceUnavailable."""
    used = found.uses  # also without a split: an audit shows such bins too
    tested_in = {use.snapshot for use in used if use.split == "test"}
    return usage.find_artifacts(registry, {use.snapshot for use in used}, tested_in, {use.bin_id for use in used})


def _digests_of(image_ids: Sequence[str], pieces: Iterable[pd.DataFrame]) -> set[str]:
    return {digest for piece in pieces for digest in piece.loc[piece["image_id"].isin(image_ids), "sha256"].dropna()}


def _read_uses(
    dataset: Path, image_ids: Sequence[str], digests: Iterable[str], problems: dict[str, None]
) -> dict[Path, pd.DataFrame]:
    """Return by snapshot's folder the rows of bins, and those with their pictures; one snapshot at a time is held."""
    ids_and_digests = pa.array(image_ids, pa.string()), pa.array(sorted(digests), pa.string())
    found, of_questions = {}, {}
    for folder in sorted(path for path in dataset.glob("snapshots/[!.]*") if path.is_dir()):
        with _noted(folder, problems):
            description = snapshots.load_description(folder)
            if description.problem and description.problem.examples == "questions":
                of_questions[folder] = description
                continue
            table = tables.read(folder / snapshots.MANIFEST, snapshots.REMEDY, schema=SCHEMA)
            found[folder] = _filter(table, *ids_and_digests)
    columns = ["image_id", "sha256", "path"]
    # Those of snapshots last: a picture that was replaced has no other row.
    pieces = [bins.read(dataset, columns), forgotten.read_rows(dataset), *found.values()] if of_questions else []
    for folder, description in of_questions.items():
        with _noted(folder, problems):
            known = pd.concat([piece[columns] for piece in pieces]).drop_duplicates(["image_id", "sha256"])
            table = _pictures_of_questions(snapshots.load_manifest(folder, description), known)
            found[folder] = _filter(table, *ids_and_digests)
    return found


@contextmanager
def _noted(folder: Path, problems: dict[str, None]) -> Iterator[None]:
    """Note in problems what keeps a snapshot from being read."""
    try:
        yield
    except (BincountError, OSError) as error:
        problems[f"snapshot {folder.name[:SHORT]}: {error}"] = None


def _filter(table: pa.Table, image_ids: pa.Array, digests: pa.Array) -> pd.DataFrame:
    is_meant = pc.or_(pc.is_in(table["image_id"], image_ids), pc.is_in(table["sha256"], digests))
    return table.filter(is_meant).to_pandas()


def _pictures_of_questions(questions: pd.DataFrame, known: pd.DataFrame) -> pa.Table:
    """Return the bins whose pictures questions show, also as references: a row a bin and split of such questions."""
    shown = []
    for split, rows in questions.groupby("split"):
        # In Arrow's memory: half a million bins have millions of questions, each with several references.
        digests = [pa.array(rows["sha256"], pa.string()), as_array(rows[REFERENCES]).flatten().cast(pa.string())]
        shown.append(pd.DataFrame({"sha256": pa.concat_arrays(digests).unique().to_pandas(), "split": split}))
    rows = pd.concat(shown).merge(known, on="sha256")
    rows = rows.assign(class_name="questions", group="", reason="", label_source=RECORD)
    return pa.Table.from_pandas(rows[SCHEMA.names], SCHEMA, preserve_index=False)


def _describe(
    image_id: str, pieces: Sequence[pd.DataFrame], here: pd.DataFrame, uses: list[Use], places: "Places"
) -> Provenance:
    digests = _digests_of([image_id], pieces)
    own = [use for use in uses if use.bin_id == image_id or use.sha256 in digests]
    # A bin that has had the picture before, and holds another now, is no copy of it; what was made then may show it.
    holding = {image_id, *here.loc[here["sha256"].isin(digests), "image_id"]}
    same = holding | {use.bin_id for use in own}
    row = next(here[here["image_id"] == image_id].itertuples(index=False), None)
    status, reason, class_name = (
        bins.text_or_none(getattr(row, name, None)) or "" for name in ("status", "reason", "class_name")
    )
    return Provenance(
        image_id,
        status,
        reason,
        class_name,
        digests=tuple(sorted(digests)),
        copies=tuple(sorted(same - {image_id})),
        holders=tuple(sorted(holding - {image_id})),
        uses=tuple(sorted(own, key=lambda use: (use.frozen, use.snapshot, use.bin_id))),
        verdicts=tuple(places.verdicts(holding)),
        files=tuple(places.files(here[here["image_id"].isin(holding)])),
        packs=tuple(places.packs(digests)),
        folders=tuple(places.folders(same)),
        elsewhere=tuple(places.elsewhere(digests)),
    )


def _require_known(wanted: Sequence[str], here: pd.Series, pieces: Iterable[pd.DataFrame]) -> None:
    known = set().union(here[here.isin(wanted)], *(piece["image_id"] for piece in pieces))
    for image_id in wanted:
        if image_id not in known:
            like = ids.similar(image_id, here)
            meant = f"did you mean {' or '.join(like)}?" if like else "correct the id, or --source"
            raise DatasetError(f"{image_id} is neither in the dataset nor in one of its snapshots; {meant}")


def _uses(workspace: Workspace, folder: Path, rows: pd.DataFrame, versions: Sequence[VersionUse]) -> Iterator[Use]:
    """Yield the uses of the bins in rows of one snapshot's manifest."""
    if rows.empty:
        return
    frozen = datetime.fromtimestamp((folder / snapshots.DESCRIPTION).stat().st_mtime, UTC)
    of_snapshot = tuple(version for version in versions if version.snapshot == folder.name)
    text = rows.astype(object).where(rows.notna(), "")
    trainings = _trainings(workspace, folder) if (text["split"] != "").any() else {}
    for row in text.itertuples(index=False):
        use = Use(
            bin_id=row.image_id,
            sha256=row.sha256,
            snapshot=folder.name,
            frozen=frozen,
            label=row.class_name if row.split else "",
            label_source=(row.label_source or RECORD) if row.split else "",
            split=row.split,
            reason=row.reason,
        )
        if row.split:
            roles = {name: _role(row.split, left_out, row.image_id) for name, left_out in trainings.items()}
            use = replace(use, trainings=roles, versions=of_snapshot)
        yield use


def _role(split: str, left_out: frozenset[str], image_id: str) -> str:
    return "left out, as its fold" if image_id in left_out else ROLES[split]


def _trainings(workspace: Workspace, folder: Path) -> dict[str, frozenset[str]]:
    """Return the trainings on a snapshot that are in the workspace, each with the ids of the bins that it left out."""
    found = {}
    for path in sorted(workspace.root.glob(f"runs/{folder.name[:SHORT]}-*")):
        found[path.name] = frozenset()
        with suppress(BincountError, OSError):  # as of an ensemble, which has no request
            if fold := read_request(path / "request.json").fold:
                of_bins = folds.assign(snapshots.open_snapshot(folder), fold.of)
                found[path.name] = frozenset(of_bins.index[of_bins == fold.number])
    return found


def _files_of(
    rows: pd.DataFrame, image_ids: set[str], digests: Iterable[str], used: Mapping[Path, pd.DataFrame]
) -> pd.DataFrame:
    """Return the files and the pictures of bins as rows that forgotten.add takes."""
    records = [bins.RECORD_FILE.format(image_id=image_id) for image_id in rows["image_id"]]
    pieces = [
        rows[["image_id", "sha256", "path"]],
        rows.assign(path=pd.Series(records, rows.index, dtype="str").where(rows["record_tag"].notna()))[
            ["image_id", "sha256", "path"]
        ],
        *(table.loc[table["sha256"].isin(digests), ["image_id", "sha256"]] for table in used.values()),
        pd.DataFrame({"image_id": sorted(image_ids)}),
    ]
    files = pd.concat(pieces, ignore_index=True)
    return files[files["image_id"].isin(image_ids)].drop_duplicates(ignore_index=True)
