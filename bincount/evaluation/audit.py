"""An audit: every bin of a source gets a network that has not been trained on it, and that network's probabilities.

A network memorises the bins that it is trained on, labels included, so that what it predicts for them says nothing
about their records. An audit is a folder that is named by what is scored and by whom:

    plan.parquet    one row a bin: its record, and which network scores it, or why none does
    plan.json       when it was begun, of which snapshot, and by which model; written after plan.parquet
    parts/          the probabilities of batches of bins, until all are there
    scores.parquet  the probabilities of all bins that were scored
    audit.*         the result, see bincount.evaluation.audit_table; audit.json is written last
"""

import hashlib
import logging
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from bincount.data import bins, folds, labels, packing, reviews, tables
from bincount.data.folds import Fold
from bincount.data.packs import Pack
from bincount.data.snapshots import Snapshot, is_in
from bincount.errors import DatasetError, SettingsError
from bincount.evaluation import holdout
from bincount.evaluation.evaluate import probability_columns
from bincount.files import locked, read_sealed, write_sealed
from bincount.problem import EXTRA, Classes, normalize_name
from bincount.progress import Progress
from bincount.settings import MAX_PIXELS, Device
from bincount.training.spec import ModelSpec, model_digest, read_spec

logger = logging.getLogger(__name__)

BATCH = 1024  # bins of a part: 154 MB of pictures at 224 pixels, and as much for the next one
PLAN, BEGUN, SCORES, PARTS = "plan.parquet", "plan.json", "scores.parquet", "parts"
REMEDY = "remove its folder and run `bincount audit` again"
MODEL = "model"  # scored_by: the model that was asked for, as opposed to the network of a fold
SCORED, NOT_ANSWERABLE, TRAINED_ON = "scored", "not answerable", "trained on"  # status of a bin
COLUMNS = ["image_id", "group", "split", "recorded", "record", "sha256", "scored_by"]  # of scores, before p_NAME


@dataclass(frozen=True)
class Scorer:
    """A network that scores bins, by its checkpoint folder.

    name is what scored_by says of the bins that it scores. trained_on are the snapshots that it, or a model whose
    weights it started from, was trained on. The network of a fold was trained on its snapshot without that fold.
    """

    name: str
    checkpoint: Path
    trained_on: tuple[Snapshot, ...]
    fold: Fold | None = None

    @classmethod
    def of_fold(cls, fold: Fold, checkpoint: Path, snapshot: Snapshot) -> "Scorer":
        return cls(str(fold), checkpoint, (snapshot,), fold)

    @cached_property
    def spec(self) -> ModelSpec:
        return read_spec(self.checkpoint)

    def bins_trained_on(self, snapshot: Snapshot) -> pd.Series:
        """Return the groups of a snapshot of which its weights have seen an image."""
        if self.fold is None:
            groups = holdout.bins_trained_on(snapshot, self.trained_on, with_val=False)
        else:
            manifest = snapshot.read()
            used = manifest["split"].isin(["train", EXTRA]).to_numpy() & ~folds.left_out(snapshot, self.fold)
            groups = manifest.loc[used, "group"]
        return pd.concat([groups, _groups_of_copies(snapshot.read(), groups)], ignore_index=True)

    def may_score(self, snapshot: Snapshot) -> np.ndarray:
        """Return for each row of the manifest whether this network is to score it, where no other does, (N,) bool."""
        manifest = snapshot.read()
        unseen = ~is_in(manifest["group"], self.bins_trained_on(snapshot))
        if self.fold is None:
            return unseen
        return unseen & is_in(manifest["group"], manifest.loc[folds.left_out(snapshot, self.fold), "group"])


@dataclass(frozen=True)
class Audit:
    """An audit that was begun: its folder, the bins, and the networks, the model that was asked for first.

    model names that model for people, and time is when the audit was begun, UTC, as ISO 8601.
    """

    folder: Path
    snapshot: Snapshot
    scorers: tuple[Scorer, ...]
    model: str
    time: str

    @property
    def outputs(self) -> Classes:
        """The classes, followed by the extra names of any of the networks."""
        return outputs_of(self.scorers)

    def plan(self) -> pd.DataFrame:
        """Return a row for each good bin, sorted by image_id: COLUMNS, and path, width, height, status and reason."""
        return tables.read_frame(self.folder / PLAN, REMEDY)

    def bins_of(self, scorer: Scorer) -> pd.DataFrame:
        """Return the rows of the plan that a network scores."""
        rows = self.plan()
        return rows[(rows["status"] == SCORED) & (rows["scored_by"] == scorer.name)].reset_index(drop=True)

    @property
    def has_scores(self) -> bool:
        return (self.folder / SCORES).exists()


def outputs_of(scorers: Sequence[Scorer]) -> Classes:
    """Return the classes of networks, followed by the extra names of any. Raises SettingsError where classes differ."""
    classes = scorers[0].spec.classes
    for scorer in scorers:
        if scorer.spec.classes != classes:
            raise SettingsError(
                f"the {scorers[0].name} predicts {', '.join(classes.names)} and the network of {scorer.name} "
                f"{', '.join(scorer.spec.classes.names)}; audit with the same --classes as the model has"
            )
    extra = sorted({name for scorer in scorers for name in scorer.spec.extra_names}, key=int)
    return Classes(names=(*classes.names, *extra), ordered=classes.ordered)


def begin(audits: Path, snapshot: Snapshot, scorers: Sequence[Scorer], model: str) -> Audit:
    """Plan an audit of a snapshot's bins in a folder below audits; one that was begun before goes on.

    Raises SettingsError where the networks or the snapshot have other classes.
    """
    outputs = outputs_of(scorers)
    if scorers[0].spec.classes != snapshot.classes:
        raise SettingsError(
            f"the model predicts {', '.join(scorers[0].spec.classes.names)} and the {snapshot.problem.nouns} have the "
            f"classes {', '.join(snapshot.classes.names)}; audit with the same --classes as the model has"
        )
    plan = assign_scorers(snapshot, scorers)
    inputs = [tables.digest(plan), *outputs.names]
    inputs += [f"{scorer.name} {model_digest(scorer.checkpoint)}" for scorer in scorers]
    name = f"{snapshot.digest[:12]}-{hashlib.sha256(' '.join(inputs).encode()).hexdigest()[:12]}"
    folder = audits / name
    begun = _read_begun(folder)
    if begun is None:
        (folder / PARTS).mkdir(parents=True, exist_ok=True)
        begun = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "snapshot": snapshot.digest, "model": model}
        tables.write_frame(plan, folder / PLAN)
        write_sealed(folder / BEGUN, begun)
    counts = plan["status"].value_counts()
    logger.info("audit %s: %s", name, ", ".join(f"{counts[status]:,} {status}" for status in counts.index))
    return Audit(folder, snapshot, tuple(scorers), model, begun["time"])


def assign_scorers(snapshot: Snapshot, scorers: Sequence[Scorer]) -> pd.DataFrame:
    """Choose the first network that may score each good bin: Audit.plan."""
    manifest = snapshot.read()
    scored_by = np.full(len(manifest), "", object)
    can_answer = np.zeros(len(manifest), bool)
    recorded, record = _records(snapshot, manifest["image_id"], outputs_of(scorers))
    for scorer in scorers:
        chosen = (scored_by == "") & scorer.may_score(snapshot)
        scored_by[chosen] = scorer.name
        can_answer |= chosen & recorded.isin(scorer.spec.outputs.names).to_numpy()
    status = np.where(scored_by == "", TRAINED_ON, np.where(can_answer, SCORED, NOT_ANSWERABLE))
    reason = pd.Series("", index=manifest.index).mask(
        status == TRAINED_ON, f"the model was trained on this {snapshot.problem.noun}; --folds has it scored too"
    )
    beyond = "the record is " + recorded.fillna("missing") + ", which is no answer that the model has"
    plan = manifest[["image_id", "group", "split"]].assign(
        recorded=recorded,
        record=record,
        sha256=manifest["sha256"],
        scored_by=pd.Series(scored_by, index=manifest.index, dtype="str"),
        path=manifest["path"],
        width=manifest["width"],
        height=manifest["height"],
        status=pd.Series(status, index=manifest.index, dtype="str"),
        reason=reason.mask(status == NOT_ANSWERABLE, beyond),
    )
    plan.loc[plan["status"] != SCORED, "scored_by"] = ""
    # People may look again at what they were unsure about; a bin without a record was taken away since the snapshot.
    asked = (manifest["status"] == "ok") | (manifest["reason"] == labels.REASONS[reviews.UNSURE])
    return plan[asked & recorded.notna()].reset_index(drop=True)


def pack_for(audit: Audit, scorer: Scorer) -> Pack:
    """Return the pack with the pictures that a network scores, at its size; what it lacks is decoded.

    Raises as packing.update does.
    """
    rows = audit.bins_of(scorer)
    pixels = rows["width"].to_numpy("int64") * rows["height"].to_numpy("int64")
    max_pixels = int(pixels.max(initial=MAX_PIXELS))
    return packing.update(audit.snapshot.dataset, scorer.spec.images, rows["path"], rows["sha256"], max_pixels)


def num_batches(audit: Audit, scorer: Scorer) -> int:
    """Return into how many batches the bins of a network are divided; none where all are scored."""
    return 0 if audit.has_scores else _count_batches(audit, scorer)


def _count_batches(audit: Audit, scorer: Scorer) -> int:
    return -(-len(audit.bins_of(scorer)) // BATCH)


def score(
    audit: Audit, scorer: Scorer, pack: Pack, device: Device = "auto", numbers: Sequence[int] | None = None
) -> None:
    """Write the probabilities of a network's bins, of all batches or of those with these numbers, from 0 on.

    Batches that are there are not scored again.
    """
    from bincount.training.device import choose_device  # here, since torch takes seconds to import
    from bincount.training.model import load, probabilities

    numbers = range(num_batches(audit, scorer)) if numbers is None else numbers
    todo = [number for number in numbers if _read_part(_part(audit, scorer, number)) is None]
    if not todo:
        return
    rows = audit.bins_of(scorer)
    (audit.folder / PARTS).mkdir(exist_ok=True)  # which another audit of the same may have removed at its end
    network, spec = load(scorer.checkpoint, choose_device(device))
    columns = probability_columns(spec.outputs)
    num_todo = sum(len(_batch(rows, each)) for each in todo)
    with Progress(f"scoring by {scorer.name}", num_todo, audit.snapshot.problem.nouns, logger) as bar:
        for number, pictures in _read_ahead(pack, rows, todo):
            predicted = probabilities(network, spec, pictures, on_batch=bar.advance, with_extra=True)
            table = pd.DataFrame(predicted, columns=columns)
            table.insert(0, "image_id", _batch(rows, number)["image_id"].to_numpy())
            tables.write_frame(table, _part(audit, scorer, number))


def collect(audit: Audit) -> pd.DataFrame:
    """Return the scores of all bins, sorted by image_id: COLUMNS and p_NAME float32 for each of the outputs.

    Raises DatasetError where batches are missing, and where a bin was scored by a network that was trained on it.
    """
    with locked(audit.folder / ".lock", f"another audit is at work in {audit.folder}"):
        return _collect(audit)


def _collect(audit: Audit) -> pd.DataFrame:
    plan = audit.plan()
    if audit.has_scores:
        scores = tables.read_frame(audit.folder / SCORES, REMEDY)
        if len(scores) != (plan["status"] == SCORED).sum():
            raise DatasetError(f"{audit.folder / SCORES} does not hold what its plan names; {REMEDY}")
        require_unseen(scores, audit.snapshot, audit.scorers)
        return scores
    names = probability_columns(audit.outputs)
    parts = [pd.DataFrame(columns=["image_id"], dtype="str")]
    for scorer in audit.scorers:
        for number in range(_count_batches(audit, scorer)):
            part = _read_part(_part(audit, scorer, number))
            if part is None:
                raise DatasetError(f"batch {number + 1} of {scorer.name} has no scores; run `bincount audit` again")
            parts.append(part)
    predicted = pd.concat(parts, ignore_index=True).reindex(columns=["image_id", *names])
    predicted[names] = predicted[names].fillna(0).astype(np.float32)
    scores = plan.loc[plan["status"] == SCORED, COLUMNS].merge(predicted, on="image_id", validate="1:1")
    scores = scores.sort_values("image_id", ignore_index=True)
    require_unseen(scores, audit.snapshot, audit.scorers)
    tables.write_frame(scores, audit.folder / SCORES)
    shutil.rmtree(audit.folder / PARTS, ignore_errors=True)
    return scores


def require_unseen(scores: pd.DataFrame, snapshot: Snapshot, scorers: Sequence[Scorer]) -> None:
    """Raise DatasetError where a bin is scored by a network that was trained on it, or by one that is not known."""
    manifest = snapshot.read()
    known = scores["scored_by"].isin([scorer.name for scorer in scorers])
    bad = scores.loc[~known, "image_id"]
    for scorer in scorers:
        mine = scores[scores["scored_by"] == scorer.name]
        groups = scorer.bins_trained_on(snapshot)
        pictures = manifest.loc[is_in(manifest["group"], groups), "sha256"]
        seen = is_in(mine["group"], groups) | is_in(mine["sha256"], pictures)
        bad = pd.concat([bad, mine.loc[seen, "image_id"]])
    if len(bad):
        raise DatasetError(
            f"{len(bad)} {snapshot.problem.nouns}, such as {bad.iloc[0]}, were scored by a network that was trained on "
            f"them, so that their scores say nothing; {REMEDY}"
        )


def _records(snapshot: Snapshot, image_ids: pd.Series, outputs: Classes) -> tuple[pd.Series, pd.Series]:
    """Return the class name, spelled as the outputs are, and the digest of each bin's record, aligned with image_ids.

    They are those that were fetched last, whatever the label in the snapshot is.
    """
    rows = bins.read(snapshot.dataset, ["image_id", "class_name", "record_sha256"])
    spelled = {normalize_name(name): name for name in outputs.names}
    known = rows["class_name"].dropna().unique()
    names = rows["class_name"].map({name: spelled.get(normalize_name(name), name) for name in known})
    digests = bins.record_digests(rows)
    positions = pd.Index(rows["image_id"]).get_indexer(image_ids)
    missing = positions < 0
    return tuple(
        pd.Series(column.to_numpy()[positions], index=image_ids.index).mask(missing).astype("str").rename(name)
        for column, name in ((names, "recorded"), (digests, "record"))
    )


def _groups_of_copies(manifest: pd.DataFrame, groups: pd.Series) -> pd.Series:
    """Return the groups that have a picture of one of these groups, byte by byte."""
    pictures = manifest.loc[is_in(manifest["group"], groups), "sha256"].dropna()
    return manifest.loc[is_in(manifest["sha256"], pictures), "group"]


def _read_begun(folder: Path) -> dict | None:
    try:
        begun = read_sealed(folder / BEGUN)
        tables.read_frame(folder / PLAN, REMEDY)
    except FileNotFoundError:
        return None
    except (ValueError, DatasetError) as error:
        logger.warning("the audit in %s is begun again: %s", folder, error)
        return None
    return begun


def _part(audit: Audit, scorer: Scorer, number: int) -> Path:
    return audit.folder / PARTS / f"{audit.scorers.index(scorer):02d}-{number:06d}.parquet"


def _read_part(path: Path) -> pd.DataFrame | None:
    """Return the scores of a batch; None where they are not there, or not what was written."""
    try:
        return tables.read_frame(path, REMEDY)
    except FileNotFoundError:
        return None
    except DatasetError as error:
        logger.warning("the batch is scored again: %s", error)
        return None


def _batch(rows: pd.DataFrame, number: int) -> pd.DataFrame:
    return rows[number * BATCH : (number + 1) * BATCH]


def _read_ahead(pack: Pack, rows: pd.DataFrame, numbers: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the pictures of batches (B, S, S, 3) uint8; a thread reads the next while the caller is at one."""
    located, images = pack.locate(rows["sha256"]), pack.images

    def read(number: int) -> np.ndarray:
        return np.take(images, located[number * BATCH : (number + 1) * BATCH], axis=0)

    with ThreadPoolExecutor(1) as thread:
        upcoming = thread.submit(read, numbers[0])
        for number, following in zip(numbers, [*numbers[1:], None], strict=True):
            pictures = upcoming.result()
            if following is not None:
                upcoming = thread.submit(read, following)
            yield number, pictures
