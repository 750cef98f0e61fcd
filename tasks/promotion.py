"""Challenger against champion as tasks: both are asked about the same bins, and the alias moves or stays."""

import getpass
import logging
import os
import socket
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.events import emit_event
from prefect.runtime import flow_run

from bincount.data import packs, snapshots, tables
from bincount.data.snapshots import Snapshot
from bincount.errors import DatasetError, ModelNotFound
from bincount.evaluation import holdout, promotion
from bincount.evaluation.evaluate import Evaluation, predict_test, probability_columns
from bincount.evaluation.intervals import LabelledImages
from bincount.evaluation.promotion import Decision
from bincount.reporting import card
from bincount.settings import PromotionConfig, RegistryConfig
from bincount.text import escape_markdown
from bincount.tracking.champion import AliasChange
from bincount.tracking.connection import open_existing
from bincount.tracking.packaging import MODEL_TAG
from bincount.tracking.registry import Registry, Version
from bincount.training.files import model_digest, read_spec
from bincount.workspace import Workspace
from tasks.registration import MLFLOW_RETRIES, task_registry

logger = logging.getLogger("bincount.promotion")


@task(name="promote model", task_run_name="compare version {version.version} with the champion", **MLFLOW_RETRIES)
def promote_model(
    version: Version,
    snapshot: Snapshot,
    evaluation: Evaluation | None,
    rules: PromotionConfig,
    config: RegistryConfig,
    workspace: Workspace,
    device: str,
) -> tuple[Version, Decision]:
    """Make a version champion if it is better than the one there is; its page and its tags say why, or why not.

    Where there is none it has to be better than always predicting the most frequent class, or stays challenger.
    evaluation is of the version on the snapshot's test images, where there was one already. Returns the version as it
    is then.
    """
    registry = task_registry(config, workspace)
    registry.recover_pending()
    while True:
        champion = registry.find_champion()
        if champion and champion.version == version.version:
            change = _last_change(registry, champion)
            decision = _standing(change)
            if _is_by_this_run(change):  # an earlier try moved it, and may not have come to saying so
                _announce(champion, decision)
            return champion, decision
        decision = _decided_by_people(registry, version, champion, rules) or _with_remedy(
            compare(registry, version, champion, rules, snapshot, evaluation, workspace, device), version
        )
        registry.describe(version, card.with_comparison(registry.card(version), decision))
        registry.record_decision(version, decision)
        if not decision.promote or registry.promote(
            version, champion, by=who(), reason=decision.reason, flow_run=root_flow_run()
        ):
            break
        logger.info("another model became champion meanwhile: comparing again")
    logger.info("%s version %d: %s", version.name, version.version, decision.describe())
    if decision.promote:
        _announce(version, decision)
    create_markdown_artifact(
        key="promotion",
        markdown=card.comparison(decision),
        description=escape_markdown(f"{version.name} version {version.version}"),
    )
    return registry.find(str(version.version)), decision


def _announce(version: Version, decision: Decision) -> None:
    emit_event(
        "bincount.champion.promoted",
        {"prefect.resource.id": f"bincount.model.{version.name}", "prefect.resource.name": version.name},
        payload={"version": version.version, "words": decision.describe()},
    )


def _last_change(registry: Registry, champion: Version) -> AliasChange | None:
    """Return the change that made a version champion, unless the alias was set by hand since."""
    changes = registry.history()
    return changes[-1] if changes and changes[-1].version == champion.version else None


def _is_by_this_run(change: AliasChange | None) -> bool:
    return (
        change is not None and change.action == "promoted" and bool(run := root_flow_run()) and change.flow_run == run
    )


def _standing(change: AliasChange | None) -> Decision:
    since = change.describe() if change else "moved there by hand"
    return Decision(promote=False, is_champion=True, reason=since)


def _decided_by_people(
    registry: Registry, version: Version, champion: Version | None, rules: PromotionConfig
) -> Decision | None:
    """What follows from what people did to the versions, who know more than the test bins do."""
    if undone := registry.find_rollback(version):
        return promotion.refuse(f"it was {undone.describe()}", rules)
    if champion is None and registry.history():
        reason = f"the champion was removed in MLflow; `bincount promote {version.version} --force` makes it this one"
        return promotion.refuse(reason, rules)
    return None


@task(name="compare models", task_run_name="compare {first} with {second}", **MLFLOW_RETRIES)
def compare_models(
    first: str,
    second: str,
    snapshot: Snapshot,
    rules: PromotionConfig,
    config: RegistryConfig,
    workspace: Workspace,
    device: str,
) -> Decision:
    """What promote_model would decide about the second version if the first were champion; nothing is changed."""
    registry = open_existing(workspace, config)
    defender, challenger = registry.find(first), registry.find(second)
    return compare(registry, challenger, defender, rules, snapshot, None, workspace, device)


def compare(
    registry: Registry,
    version: Version,
    champion: Version | None,
    rules: PromotionConfig,
    snapshot: Snapshot,
    evaluation: Evaluation | None,
    workspace: Workspace,
    device: str,
) -> Decision:
    """Decide on the test images of the snapshot whose bins neither version has learned from.

    Without a champion the version is compared with the most frequent class of what it has learned from.
    """
    if champion and MODEL_TAG in version.tags and champion.tags.get(MODEL_TAG) == version.tags[MODEL_TAG]:
        return promotion.refuse(f"it has the same weights as version {champion.version}", rules)
    is_first = champion is None
    models, learned_from, tables = [version] if is_first else [version, champion], [], []
    for model in models:
        folder = workspace.snapshot(model.snapshot_digest or "unknown")
        if folder is None:
            reason = f"what version {model.version} has learned from is not in the workspace {workspace.root}"
            return promotion.refuse(f"{reason}, so that no bin is sure to be new to it", rules, is_first=is_first)
        learned_from.append(snapshots.open_snapshot(folder))
    for model in models:
        known = evaluation if model is version else None
        try:
            table = known.predictions if known else predictions(registry, model, snapshot, workspace, device)
        except ModelNotFound as error:
            return promotion.refuse(str(error), rules, is_first=is_first)
        if table is None:
            reason = f"version {model.version} tells other classes than the snapshot has"
            return promotion.refuse(reason, rules, is_first=is_first)
        tables.append(table)
    unseen = holdout.find_unseen(snapshot, learned_from)
    tables = [table[table["image_id"].map(unseen)] for table in tables]
    labels, groups = tables[0]["label"].to_numpy(np.int64), tables[0]["group"].to_numpy()
    images = LabelledImages(labels, groups, snapshot.classes)
    probabilities = [table[probability_columns(snapshot.classes)].to_numpy() for table in tables]
    trained_on = _images_by_class(learned_from[0])
    absent = np.flatnonzero(trained_on == 0).tolist()
    if is_first:
        return promotion.decide_first(images, *probabilities, trained_on.argmax(), rules, absent)
    return promotion.decide(images, *probabilities, rules, absent)


def _images_by_class(snapshot: Snapshot) -> np.ndarray:
    """Of train, (C,)."""
    rows = snapshot.labelled()
    return np.bincount(rows.loc[rows["split"] == "train", "label"], minlength=len(snapshot.classes))


def _with_remedy(decision: Decision, version: Version) -> Decision:
    """Without a champion nothing else says how to have one."""
    if decision.promote or not decision.is_first:
        return decision
    remedy = f"`bincount promote {version.version} --force` makes it champion all the same"
    return decision.model_copy(update={"reason": f"{decision.reason}; {remedy}"})


def predictions(
    registry: Registry, version: Version, snapshot: Snapshot, workspace: Workspace, device: str
) -> pd.DataFrame | None:
    """What a version makes of the snapshot's test images, asked once; None where it tells other classes."""
    with tempfile.TemporaryDirectory() as temporary:
        checkpoint = registry.checkpoint(version, Path(temporary))
        spec = read_spec(checkpoint)
        if spec.classes != snapshot.classes:
            return None
        folder = workspace.evaluation(snapshot.digest, model_digest(checkpoint))
        kept = folder / "predictions.parquet"
        if kept.exists():
            try:
                return tables.read_frame(kept, "the model is asked again")
            except DatasetError as error:
                logger.warning("%s", error)
        images = snapshot.labelled()
        images = images[images["split"] == "test"]  # the others need not be packed at this model's size
        pack = packs.update(snapshot.dataset, spec.images, images["path"], images["sha256"])
        return predict_test(snapshot, pack, checkpoint, folder, device)


def root_flow_run() -> str:
    """Return the id of the flow run that this one is a part of, or its own; it is empty outside flows."""
    return str(flow_run.root_flow_run_id) if flow_run.id else ""


def who() -> str:
    """Name for people who changes an alias: the user and the host, and the flow run where there is one."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        user = f"uid {os.getuid()}"
    person = f"{user}@{socket.gethostname()}"
    return f"{person} in flow run {flow_run.name} ({flow_run.root_flow_run_id})" if flow_run.name else person
