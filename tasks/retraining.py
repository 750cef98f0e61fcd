"""What a night asks before it trains: what is new, whether that is like what is known, and where to start from."""

import hashlib
import logging
import shutil
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.events import emit_event
from prefect.runtime import flow_run

from bincount import retention
from bincount.data import snapshots
from bincount.data.packs import Pack
from bincount.data.snapshots import Snapshot
from bincount.errors import ModelNotFound
from bincount.evaluation import drift
from bincount.evaluation.drift import Drift
from bincount.files import atomic_write, read_sealed, sealed
from bincount.reporting import tables
from bincount.retention import Removed
from bincount.settings import DriftConfig, ImageConfig, RegistryConfig, RetentionConfig, RetrainConfig, TrainConfig
from bincount.text import escape_markdown
from bincount.tracking.connection import find_checkpoint
from bincount.tracking.packaging import MODEL_TAG
from bincount.tracking.registry import Registry, Version
from bincount.training.spec import read_spec, weights_digest
from bincount.workspace import Workspace
from tasks.registration import MLFLOW_RETRIES, NIGHT_TAG, task_registry

logger = logging.getLogger("bincount.night")


@dataclass(frozen=True)
class News:
    """What is new since the champion learned; skip says why nothing is to be trained, and is empty where it is.

    Where there is no champion, since is the last version of the same source and classes, if there is one.
    """

    champion: Version | None
    num_new: int
    skip: str = ""
    since: Version | None = None

    def how_new(self) -> str:
        """`new since version 3, the champion`."""
        if self.champion:
            return f"new since version {self.champion.version}, the champion"
        if self.since:
            return f"new since version {self.since.version}, the last, as none is champion"
        return "new, since there was no champion"


@task(name="look at what is new", task_run_name="look at what is new", **MLFLOW_RETRIES)
def look(
    snapshot: Snapshot,
    images: ImageConfig,
    training: TrainConfig,
    rules: RetrainConfig,
    config: RegistryConfig,
    workspace: Workspace,
) -> News:
    """Count the images since the champion, and find out whether they are worth a training."""
    registry = task_registry(config, workspace)
    registry.recover_pending()  # which a night that was killed may have begun
    champion = _find_champion_before(registry)
    since = champion or _find_last(registry, snapshot)
    if since is None:
        return News(None, snapshot.num_images)
    folder = workspace.snapshot(since.snapshot_digest or "unknown")
    if folder:
        num_new = len(snapshot.since(snapshots.open_snapshot(folder)))
    else:  # it was trained elsewhere
        num_new = max(0, snapshot.num_images - since.num_images)
    # What auto stands for may be another on the machine of another night; that alone is no reason to train again.
    by_machine = {"device"} | ({"precision"} if training.precision == "auto" else set())
    settings = {**images.model_dump(), **training.model_dump(exclude=by_machine)}
    if rules.warm_start:
        del settings["weights"]
    news = News(champion, num_new, since=since)
    # a version that is no champion and has no decision yet is taken up, also where nothing is new
    if champion or _is_settled(since):
        news = replace(news, skip=_why_not(registry, snapshot, news, settings, rules))
    logger.info("%d images are %s. %s", news.num_new, news.how_new(), news.skip)
    return news


def _find_champion_before(registry: Registry) -> Version | None:
    """The champion that this night has found, which may have put another in its place before it was started again."""
    champion = registry.find_champion()
    if champion and _is_of_this_night(champion):
        last = next(reversed(registry.history()), None)
        if last and last.version == champion.version:
            with suppress(ModelNotFound):
                return registry.find(str(last.over)) if last.over else None
    return champion


def _find_last(registry: Registry, snapshot: Snapshot) -> Version | None:
    """The last version of the source and the classes of a snapshot that an earlier night, or a run, has registered."""
    of_it = {"source": snapshot.source, "classes": ",".join(snapshot.classes.names)}
    for version in registry.versions():
        if of_it.items() <= version.tags.items() and not _is_of_this_night(version):
            return version
    return None


def _is_settled(version: Version) -> bool:
    """Whether it was decided about, and what was decided is done: a night may have been killed before or in between."""
    return version.decision is not None and (version.is_promoted or not version.decision.promote)


def _is_of_this_night(version: Version) -> bool:
    return bool(flow_run.id) and version.tags.get(NIGHT_TAG) == str(flow_run.root_flow_run_id)


def _why_not(registry: Registry, snapshot: Snapshot, news: News, settings: Mapping, rules: RetrainConfig) -> str:
    if news.num_new < rules.min_new_images:
        return (
            f"Nothing was trained: {news.num_new:,} images are {news.how_new()}, "
            f"and a training needs {rules.min_new_images:,} (min_new_images)"
        )
    for version in registry.versions_of(snapshot.digest):
        if _is_of_this_night(version):
            continue
        # what was to be promoted and was not is ended by this night
        if _is_settled(version) and registry.runs.was_trained_with(version.run_id, settings):
            undone = registry.find_rollback(version)
            since = f"It was {undone.describe()}" if undone else version.decision.summary()
            return f"Nothing was trained: version {version.version} has learned from these images already. {since}"
    return ""


@task(name="measure drift", task_run_name="measure drift", **MLFLOW_RETRIES)
def measure_drift(
    news: News,
    snapshot: Snapshot,
    pack: Pack,
    rules: DriftConfig,
    config: RegistryConfig,
    workspace: Workspace,
    device: str,
) -> Drift:
    """How unlike the new images are to those of the champion; a warning and an event where somebody should look."""
    champion = news.champion
    folder = champion and workspace.snapshot(champion.snapshot_digest or "unknown")
    if folder is None:
        reason = f"what version {champion.version} learned from is not here" if champion else "there is no champion"
        return Drift(num_new=news.num_new, note=f"nothing to compare with: {reason}")
    kept = _place_of_drift(champion, snapshot, rules, workspace)
    found = _read_drift(kept)
    is_known = found is not None  # as on every night until something is new
    if not is_known:
        found = _compare(
            champion, snapshot, snapshots.open_snapshot(folder), pack, news, rules, config, workspace, device
        )
    create_markdown_artifact(key="drift", markdown=_drift_page(found), description=escape_markdown(found.describe()))
    for warning in found.warnings:
        logger.warning(warning)
    if is_known:
        return found
    if found.warnings:
        emit_event(
            "bincount.drift.found",
            {"prefect.resource.id": f"bincount.model.{champion.name}", "prefect.resource.name": champion.name},
            payload={"version": champion.version, "words": found.describe()},
        )
    kept.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(kept) as temporary:
        temporary.write_text(sealed(found.model_dump(mode="json")))
    return found


def _read_drift(kept: Path) -> Drift | None:
    """What an earlier night has found; None where there is nothing, or nothing that can be used."""
    try:
        return Drift.model_validate(read_sealed(kept))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        logger.warning("%s is damaged (%s); the drift is measured again", kept, str(error).splitlines()[0])
        return None


def _place_of_drift(champion: Version, snapshot: Snapshot, rules: DriftConfig, workspace: Workspace) -> Path:
    """Named by what the comparison follows from."""
    model = champion.tags.get(MODEL_TAG, champion.run_id)
    inputs = f"{champion.snapshot_digest} {champion.tags.get('test_accuracy')} {rules.model_dump_json()}"
    name = hashlib.sha256(inputs.encode()).hexdigest()[:12]
    return workspace.evaluation(snapshot.digest, model) / f"drift-{name}.json"


def _compare(
    champion: Version,
    snapshot: Snapshot,
    learned_from: Snapshot,
    pack: Pack,
    news: News,
    rules: DriftConfig,
    config: RegistryConfig,
    workspace: Workspace,
    device: str,
) -> Drift:
    accuracy, missing = None, ""
    if news.num_new >= rules.min_images and (test := champion.scores.get("accuracy")):
        try:
            with find_checkpoint(str(champion.version), workspace, config) as checkpoint:
                accuracy = drift.score_new_images(snapshot, learned_from, checkpoint, test, rules, device)
        except ModelNotFound as error:
            missing = f"the champion was not evaluated: {error}"
    found = drift.detect(snapshot, learned_from, pack, rules, accuracy)
    return found.model_copy(update={"note": "; ".join(filter(None, [found.note, missing]))})


def _drift_page(found: Drift) -> str:
    measured = (tables.drift_indices(found), tables.drift_class_shares(found))
    said = map(escape_markdown, [found.describe(), *([found.note] if found.indices and found.note else [])])
    return "\n\n".join([*said, *(tables.markdown_table(table) for table in measured if len(table))])


@task(name="remove what is not needed", task_run_name="remove what is not needed", **MLFLOW_RETRIES)
def clean_up(rules: RetentionConfig, config: RegistryConfig, workspace: Workspace) -> Removed:
    """Remove old trainings, tests and snapshots that no version needs."""
    registry = task_registry(config, workspace)
    try:
        planned = retention.plan(workspace, registry, rules, datetime.now(UTC))
    except ModelNotFound as error:  # no version is of this workspace
        logger.warning("nothing is removed: %s", error)
        return Removed((), ())
    return retention.remove(planned, registry)


@task(name="start from champion", task_run_name="start from version {champion.version}", **MLFLOW_RETRIES)
def start_from(champion: Version, training: TrainConfig, config: RegistryConfig, workspace: Workspace) -> TrainConfig:
    """The settings with the champion's weights to start from; as they were, where it is another kind of model."""
    with ExitStack() as stack:
        try:
            checkpoint = stack.enter_context(find_checkpoint(str(champion.version), workspace, config))
        except ModelNotFound as error:
            logger.warning("not started from the champion's weights: %s", error)
            return training
        spec = read_spec(checkpoint)
        if (spec.model, spec.head) != (training.model, training.head):
            logger.warning(
                "version %d is a %s and the settings ask for a %s: not started from its weights",
                champion.version,
                spec.model,
                training.model,
            )
            return training
        # named by its content, so that a retry finds the same settings and resumes
        kept = workspace.weights(weights_digest(checkpoint))
        kept.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(kept) as temporary:
            shutil.copyfile(checkpoint / "model.safetensors", temporary)
    return training.model_copy(update={"weights": str(kept)})
