"""An audit from end to end: the model and what it was trained on, the scores, what people found, and the files."""

import hashlib
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from bincount.comparison import open_snapshot_of
from bincount.data import bins, contradictions, packing, pairs, tables
from bincount.data.packs import Pack
from bincount.errors import ModelNotFound
from bincount.evaluation import audit as audits
from bincount.evaluation import audit_table
from bincount.evaluation.audit import MODEL, Audit, Scorer
from bincount.evaluation.audit_table import Figures
from bincount.files import write_sealed
from bincount.problem import Problem
from bincount.settings import AuditConfig, Job
from bincount.text import capitalize, percent
from bincount.tracking.champion import CHAMPION, ignore_missing
from bincount.tracking.packaging import MODEL_TAG
from bincount.tracking.registry import Registry, Version
from bincount.training.spec import is_own_model, model_digest, weights_digest
from bincount.workspace import Workspace

if TYPE_CHECKING:
    from bincount.data.review_formats import Tool
    from bincount.evaluation.audit_judgement import Quality

logger = logging.getLogger(__name__)

FOLDS = "folds"  # as a model: the mean of the networks of all folds
WITHOUT_A_MODEL = "`bincount audit --folds 4 --scored-by folds` trains its own networks, and needs no registered model"
WEIGHTS_OF_MEMBERS = re.compile(r"['\"]weights['\"]: ['\"]([^'\"]+)")  # in the param of a run that lists its members
DIGITS_OF_KEPT_WEIGHTS = 16  # of the digest, in the names of Workspace.weights
NOT_OF_CLASSES = ("p_wrong", "p_recorded")  # columns beside the probability p_NAME of each class
FROM_SETTINGS = {"min_confidence", "queue", "random_share", "error_rate"}  # what the result depends on


@dataclass(frozen=True)
class Audited:
    """A finished audit, by its folder, and what it found; another name is another result, of other reviews, say."""

    folder: Path
    name: str
    figures: Figures
    headline: str

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row a bin, as audit_table.tabulate returns them."""
        return audit_table.read_table(self.folder)

    @property
    def queue(self) -> pd.DataFrame:
        """The bins that people are asked to look at, in the order of showing."""
        return tables.read_frame(self.folder / audit_table.QUEUE, audits.REMEDY)


def export_queue(audited: Audited, job: Job, to: "Tool") -> str:
    """Write the bins that people are asked to look at for another tool, and return how they go on from there.

    The files are in a folder of the audit that is named as the tool is. Raises DatasetError and DiskFull.
    """
    from bincount.data import review_formats

    dataset, queue = Workspace(root=job.workspace).dataset(job.data), audited.queue
    rows = bins.read(dataset, ["image_id", "path"]).set_index("image_id")["path"].reindex(queue["image_id"])
    paths = {image_id: dataset / path for image_id, path in rows.dropna().items()}
    names = [name.removeprefix("p_") for name in queue if name.startswith("p_") and name not in NOT_OF_CLASSES]
    return review_formats.export_queue(queue, paths, audited.folder / to, to, names)


def find_version(registry: Registry, reference: str) -> Version:
    """Return the version with an alias or a number. Raises ModelNotFound, with what is to be done without one."""
    try:
        return registry.find(reference)
    except ModelNotFound as error:
        raise ModelNotFound(f"{error}; {WITHOUT_A_MODEL}") from error


def fetch_scorer(
    registry: Registry, version: Version, job: Job, folder: Path, others: Sequence[Registry] = ()
) -> Scorer:
    """Fetch a version's files into folder, and find what it was trained on. Raises as Registry.checkpoint does.

    A version that started from the weights of another was trained on the bins of that one too; others are where the
    models of other tasks are registered from which it may have started.
    """
    trained_on = [open_snapshot_of(each, job) for each in find_ancestors(registry, version, others)]
    return Scorer(MODEL, registry.checkpoint(version, folder), tuple(trained_on))


def fetch_change_scorer(changes: Registry, counting: Registry, job: Job, folder: Path) -> Scorer | None:
    """Fetch the champion among the models of changes as fetch_scorer does.

    Returns None where there is none, or nothing says which bins it was trained on: an audit does without it. So it does
    without a model that counts, which an earlier release registered under a name that is now one of models of changes.
    """
    try:
        version = changes.find(CHAMPION)
        found = fetch_scorer(changes, version, job, folder, (counting,))
    except ModelNotFound as error:
        logger.info("no model of changes is asked: %s", error)
        return None
    if found.spec.task != "change":
        logger.info("no model of changes is asked: %s version %s counts", version.name, version.version)
        return None
    return found


def find_ancestors(registry: Registry, version: Version, others: Sequence[Registry] = ()) -> list[Version]:
    """Return a version, those whose weights its training and those of its members started from, and so on.

    They are looked for in the registry, and in others. Raises ModelNotFound where such weights are of a model that is
    not registered any more.
    """
    found, todo = {}, [version]
    while todo:
        each = todo.pop(0)
        if (each.name, each.version) not in found:
            found[each.name, each.version] = each
            todo += _find_parents((registry, *others), each)
    return list(found.values())


def finish(audit: Audit, job: Job, changes: Scorer | None = None) -> Audited:
    """Rank the bins that were scored, and write the files of an audit; what is there already is not made again.

    changes is a network of changes, which is asked about the pairs of bins that it was not trained on.
    """
    from bincount.data import reviews
    from bincount.evaluation import audit_judgement, ranking, record_errors

    dataset, config = audit.snapshot.dataset, job.audit
    scores = audits.collect(audit)
    verdicts = reviews.read(dataset)
    inputs = {
        "settings": config.model_dump(mode="json", include=FROM_SETTINGS),
        "verdicts": tables.digest(verdicts.drop(columns="picture")),
        "earlier_pictures": True,  # which a result of an older release does without
    }
    if changes:
        inputs["changes"] = model_digest(changes.checkpoint)
    name = f"{audit.folder.name}-{hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:8]}"
    result = audit_table.read_result(audit.folder)
    if result.get("inputs") == inputs:
        logger.info("audited already: %s", audit.folder)
        return Audited(audit.folder, name, Figures.model_validate(result["figures"]), result["headline"])
    (audit.folder / audit_table.FIGURES).unlink(missing_ok=True)
    errors = record_errors.estimate(config.error_rate, reviews.random_share(dataset))
    pairs_of_bins = pairs.read(audit.snapshot)
    ways = audit_judgement.ways_to_rank(audit, scores, pairs_of_bins, errors, changes, job.training.device)
    quality = audit_judgement.judge(scores, audit, errors, ways)
    threshold = audit.scorers[0].spec.threshold
    ranked = ranking.rank(scores, audit.outputs, errors, config.min_confidence, threshold, quality.earlier)
    resolved = reviews.resolve(verdicts, bins.read(dataset, reviews.BIN_COLUMNS))
    settled = resolved.loc[resolved["outcome"] != "unsure", "image_id"].astype("str")
    table = audit_table.tabulate(audit, ranked, contradictions.find(dataset), settled, pairs_of_bins)
    tables.write_frame(table, audit.folder / audit_table.TABLE)
    audit_table.write_csv(table, audit.folder / audit_table.CSV)
    figures = audit_table.measure(audit, table, errors.rate, errors.num_reviewed).model_copy(update=quality.figures())
    headline = audit_table.headline(figures, table)
    queue = audit_table.choose_queue(table, config, settled, seed=audit.folder.name)
    tables.write_frame(queue, audit.folder / audit_table.QUEUE)
    _write_page(audit, job, queue, table, figures, headline, quality)
    content = {"headline": headline, "figures": figures.model_dump(mode="json"), "inputs": inputs}
    content |= {
        "quality": json.loads(quality.found.to_json(orient="records")),
        "promise": quality.promise,
        "not_used": quality.not_used,
    }
    write_sealed(audit.folder / audit_table.FIGURES, content)
    return Audited(audit.folder, name, figures, headline)


def _find_parents(registries: Sequence[Registry], version: Version) -> list[Version]:
    """Return the versions whose weights the training of one started from, or of one of its members."""
    params = None
    with ignore_missing():
        params = registries[0].runs.read_params(version.run_id)
    if params is None:
        raise ModelNotFound(
            f"the run of version {version.version} was removed in MLflow, and nothing else says from which weights it "
            f"started, so that no image is sure to be new to it; {WITHOUT_A_MODEL}"
        )
    each_weights = dict.fromkeys([params.get("weights", ""), *WEIGHTS_OF_MEMBERS.findall(params.get("members", ""))])
    parents = (_find_parent(registries, version, Path(weights)) for weights in each_weights)
    return [parent for parent in parents if parent]


def _find_parent(registries: Sequence[Registry], version: Version, path: Path) -> Version | None:
    """Return the version that a file of weights is of; None where it is of no such model."""
    if path.suffix != ".safetensors":
        return None
    if path.is_file():
        if not is_own_model(path):
            return None
        digest = _digest_of(path)
    else:
        digest = path.stem if len(path.stem) == DIGITS_OF_KEPT_WEIGHTS else ""
    versions = (each for registry in registries for each in registry.versions() if digest)
    parent = next((each for each in versions if each.tags.get(MODEL_TAG, "").startswith(digest)), None)
    if parent is None:
        raise ModelNotFound(
            f"version {version.version} started from the weights {path}, and no registered version says which images "
            f"these were trained on, so that no image is sure to be new to it; {WITHOUT_A_MODEL}"
        )
    return parent


def _digest_of(path: Path) -> str:
    if path.name == "model.safetensors":
        return weights_digest(path.parent)
    if re.fullmatch(rf"[0-9a-f]{{{DIGITS_OF_KEPT_WEIGHTS}}}", path.stem):
        return path.stem  # kept by lifecycle.start_from_champion, under the beginning of its digest
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_page(
    audit: Audit,
    job: Job,
    queue: pd.DataFrame,
    table: pd.DataFrame,
    figures: Figures,
    headline: str,
    quality: "Quality",
) -> None:
    from bincount.reporting import audit as page

    dataset = audit.snapshot.dataset
    files = audit.plan().set_index("image_id").loc[queue["image_id"]]
    pack = packing.update(dataset, job.images, files["path"], files["sha256"], job.data.max_pixels)
    rows = pack.locate(files["sha256"])
    about = page.About(
        title=f"Audit of {audit.snapshot.source}",
        model=audit.model,
        snapshot=audit.snapshot.digest,
        time=audit.time,
        classes=audit.outputs,
        headline=headline,
        tiles=[page.Tile(*tile) for tile in _tiles(figures, audit.snapshot.problem.answer)],
        tables=_page_tables(table, quality, audit.snapshot.problem),
        problem=audit.snapshot.problem,
    )
    queue = queue.assign(items=_items(dataset, queue["image_id"]))
    page.write(audit.folder / audit_table.PAGE, queue, partial(_take, pack, rows), about)


def _take(pack: Pack, rows: np.ndarray, positions: np.ndarray) -> np.ndarray:
    return np.take(pack.images, rows[positions], axis=0)


def _tiles(figures: Figures, answer: str) -> list[tuple[str, str, str]]:
    basis = (
        f"{figures.num_reviewed:,} reviews of random {figures.nouns}"
        if figures.num_reviewed
        else "assumed, not reviewed yet"
    )
    return [
        ("likelier wrong than right", f"{figures.num_likely_wrong:,}", f"of {figures.num_scored:,} records"),
        ("share of wrong records", percent(figures.error_rate), basis),
        ("to look at", f"{figures.num_to_look:,}", f"the model is not sure enough for a {answer}"),
        ("not scored", f"{figures.num_bins - figures.num_scored:,}", f"of {figures.num_bins:,} {figures.nouns}"),
    ]


def _page_tables(table: pd.DataFrame, quality: "Quality", problem: Problem) -> dict[str, pd.DataFrame]:
    reasons = table.loc[table["status"] != audits.SCORED, "status"].value_counts()
    found = {}
    if len(quality.found):
        caption = "How many records that were made wrong on purpose are found, with 95 % intervals"
        found[caption] = _show(quality.found, problem.nouns)
    if quality.promise:
        found["Without any label"] = pd.DataFrame({"the probabilities against the records": [quality.promise]})
    if quality.not_used:
        found["With a history"] = pd.DataFrame({"what was tried": [quality.not_used]})
    if len(reasons):
        caption = f"{capitalize(problem.nouns)} that were not scored"
        found[caption] = reasons.rename_axis("why").reset_index(name=problem.nouns)
    if table["contradicts"].any():
        caption = "Records that contradict themselves: their items do not add up to their quantity"
        found[caption] = audit_table.contradicting_bins(table, 100, problem.noun)
    return found


def _show(found: pd.DataFrame, nouns: str) -> pd.DataFrame:
    """Return the figures of each score as people read them, a row a figure."""
    texts = [
        f"{percent(row.value)} ({percent(row.low)} to {percent(row.high)})" for row in found.itertuples(index=False)
    ]
    by_score = found.assign(text=texts).pivot_table("text", "measure", "score", aggfunc="first", sort=False)
    ours = found[found["score"] == "p_wrong"].set_index("measure")
    chance = ours["value"] / ours["lift"].where(ours["lift"] > 0)
    by_score["at random"] = chance.map(percent, na_action="ignore").reindex(by_score.index).fillna("")
    by_score["times as many as at random"] = ours["lift"].map("{:.1f}".format).reindex(by_score.index)
    by_score = by_score.rename(columns={"p_wrong": "this list", "rarest record": "rarest record first"})
    by_score.index = by_score.index.str.replace("precision at ", "wrong among the first ").str.replace(
        r"recall at (.*)", rf"found by checking \1 of the {nouns}", regex=True
    )
    return by_score.rename_axis("", axis=0).reset_index().rename_axis(None, axis=1)


def _items(dataset: Path, image_ids: pd.Series) -> np.ndarray:
    """Return what the records of some bins list, as text; empty where they list nothing."""
    texts = {}
    for piece in bins.read_pieces(dataset, ["image_id", "items"]):
        some = piece.filter(pc.is_in(piece["image_id"], pa.array(image_ids, pa.string())))
        for image_id, items in zip(some["image_id"].to_pylist(), some["items"].to_pylist(), strict=True):
            texts[image_id] = ", ".join(f"{name} × {quantity}" for name, quantity in items or ())
    return image_ids.map(texts).fillna("").to_numpy()


def describe_settings(audit_config: AuditConfig) -> dict[str, object]:
    """Return the settings that an audit's result depends on, for its run in MLflow."""
    return audit_config.model_dump(include=FROM_SETTINGS | {"folds"})


def folder_of_audits(job: Job) -> Path:
    """Return the folder of a workspace's audits, made where it is missing."""
    folder = Workspace(root=job.workspace).audits
    folder.mkdir(parents=True, exist_ok=True)
    return folder
