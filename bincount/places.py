"""Where the pictures of bins lie in a workspace: originals, packs, evaluations, audits, and other datasets."""

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from bincount.data import bins, removal, reviews, tables
from bincount.data.ids import with_bins_of_questions
from bincount.errors import BincountError
from bincount.workspace import Workspace

SHORT = 12  # digits of a snapshot's digest in the names of trainings and evaluations
TABLES = {"evaluations": "predictions.parquet", "audits": "audit.parquet"}  # in each folder: which bins it has
UNKNOWN = frozenset()  # the bins of a folder that does not say which it has


class Places:
    """The places of some pictures, by their digests, in a workspace; each is looked through once.

    problems gets in words what could not be read. All paths are relative to the workspace.
    """

    def __init__(self, workspace: Workspace, dataset: Path, digests: Iterable[str], problems: dict[str, None]):
        self._root, self._dataset, self._problems = workspace.root, dataset, problems
        self._digests = set(digests)

    def files(self, rows: pd.DataFrame) -> Iterator[str]:
        """Yield the originals and records of rows of the row store that are here."""
        for row in rows.itertuples(index=False):
            named = [bins.text_or_none(row.path), bins.RECORD_FILE.format(image_id=row.image_id)]
            yield from (
                self._relative(self._dataset / path) for path in named if path and _is_file(self._dataset / path)
            )

    def packs(self, digests: set[str]) -> Iterator[str]:
        """Yield the packs that hold one of these pictures."""
        yield from (name for name, held in self._packs.items() if held & digests)

    def folders(self, image_ids: set[str]) -> Iterator[str]:
        """Yield the evaluations and audits that have one of these bins, and those that do not say which they have."""
        yield from (name for name, held in self._folders.items() if held is UNKNOWN or held & image_ids)

    def elsewhere(self, digests: set[str]) -> Iterator[str]:
        """Yield the bins of other datasets of the workspace with one of these pictures, as `DATASET: ID`."""
        yield from (where for where, digest in self._elsewhere if digest in digests)

    def verdicts(self, image_ids: set[str]) -> Iterator[Mapping[str, str]]:
        """Yield what people have said of these bins, in the order in which it was imported."""
        chosen = self._verdicts[self._verdicts["image_id"].isin(image_ids)] if len(self._verdicts) else self._verdicts
        for row in chosen.astype(object).where(chosen.notna(), None).to_dict("records"):
            yield {name: str(cell) for name, cell in row.items() if cell is not None}

    @cached_property
    def _packs(self) -> dict[str, set[str]]:
        found, wanted = {}, {digest.encode() for digest in self._digests}
        for folder in removal.pack_folders(self._dataset):
            held = wanted.intersection(removal.open_folder(folder).digests.to_pylist()) if wanted else set()
            found[self._relative(folder)] = {digest.decode() for digest in held}
        return found

    @cached_property
    def _folders(self) -> dict[str, set[str] | frozenset]:
        """The ids of bins by folder; folders on snapshots of other datasets are left out."""
        own, others = ({path.name[:SHORT] for path in found} for found in self._snapshots())
        found = {}
        for parent, name in TABLES.items():
            for folder in sorted(path for path in (self._root / parent).glob("[!.]*") if path.is_dir()):
                if folder.name[:SHORT] in others - own:
                    continue
                try:
                    table = pq.read_table(folder / name, columns=["image_id"])
                    found[self._relative(folder)] = with_bins_of_questions(table["image_id"].to_pylist())
                except tables.UNREADABLE:
                    found[self._relative(folder)] = UNKNOWN
        return found

    def _snapshots(self) -> tuple[list[Path], list[Path]]:
        every = [path for path in self._root.glob("datasets/*/snapshots/[!.]*") if path.is_dir()]
        own = [path for path in every if path.parent.parent.resolve() == self._dataset.resolve()]
        return own, [path for path in every if path not in own]

    @cached_property
    def _elsewhere(self) -> list[tuple[str, str]]:
        found = []
        for folder in sorted(self._root.glob("datasets/*")):
            if folder.resolve() == self._dataset.resolve() or not self._digests:
                continue
            try:
                rows = bins.read(folder, ["image_id", "sha256"])
            except BincountError as error:
                self._problems[f"dataset {folder.name}: {error}"] = None
                continue
            same = rows[rows["sha256"].isin(self._digests)]
            found += [(f"{folder.name}: {row.image_id}", row.sha256) for row in same.itertuples(index=False)]
        return found

    @cached_property
    def _verdicts(self) -> pd.DataFrame:
        try:
            return reviews.read(self._dataset)
        except BincountError as error:
            self._problems[f"verdicts: {error}"] = None
            return pd.DataFrame()

    def _relative(self, path: Path) -> str:
        return path.relative_to(self._root).as_posix()


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that no file can have
        return False
