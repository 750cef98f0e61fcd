"""Challenger against champion as tasks: both are asked about the same bins, and the alias moves or stays."""

import getpass
import logging
import os
import socket
import tempfile
from pathlib import Path

import numpy as np
from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from bincount import registry
from bincount.data import manifest, packs
from bincount.data.manifest import Snapshot
from bincount.evaluation import card, promotion
from bincount.evaluation.evaluate import Evaluation, evaluate
from bincount.evaluation.promotion import Decision
from bincount.registry import MODEL_TAG, Registry, Version
from bincount.settings import PromotionConfig, RegistryConfig, Workspace
from bincount.training.files import weights_digest
from bincount.training.model import read_spec
from tasks.registry import server_may_return

logger = logging.getLogger("bincount.promotion")


@task(
    name="promote model",
    task_run_name="compare version {version.version} with the champion",
    cache_policy=NO_CACHE,
    retries=4,
    retry_delay_seconds=[5, 30, 120, 600],
    retry_condition_fn=server_may_return,
)
def promote_model(
    version: Version,
    snapshot: Snapshot,
    evaluation: Evaluation | None,
    rules: PromotionConfig,
    config: RegistryConfig,
    workspace: Workspace,
    device: str,
) -> tuple[Version, Decision]:
    """Make a version champion if it counts better than the one there is; its card and its tags say why, or why not.

    evaluation is of the version on the snapshot's test images, where there was one already. Returns the version as it
    is then.
    """
    opened = registry.open_registry(workspace.tracking_uri(config), workspace.artifacts, config)
    while True:
        champion = opened.find_champion()
        if champion and champion.version == version.version:
            return champion, Decision(promote=False, reason="it is the champion")
        undone = opened.was_rolled_back(version)
        if champion and undone:  # people know more than the test bins do
            decision = promotion.refuse(f"it was {undone.words()}", rules)
        else:
            decision = compare(opened, version, champion, snapshot, evaluation, rules, workspace, device)
        opened.note_decision(version, decision.words())
        opened.describe(version, card.with_comparison(opened.card(version), decision))
        if not decision.promote or opened.promote(version, champion, by=who(), reason=decision.reason):
            break
        logger.info("another model became champion meanwhile: comparing again")
    logger.info("%s version %d: %s", version.name, version.version, decision.words())
    create_markdown_artifact(
        key="promotion",
        markdown=card.with_comparison("", decision),
        description=f"{version.name} version {version.version}",
    )
    return opened.find(str(version.version)), decision


@task(name="compare models", task_run_name="compare {first} with {second}", cache_policy=NO_CACHE)
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
    opened = registry.open_registry(workspace.tracking_uri(config), workspace.artifacts, config)
    defender, challenger = opened.find(first), opened.find(second)
    return compare(opened, challenger, defender, snapshot, None, rules, workspace, device)


def compare(
    opened: Registry,
    version: Version,
    champion: Version | None,
    snapshot: Snapshot,
    evaluation: Evaluation | None,
    rules: PromotionConfig,
    workspace: Workspace,
    device: str,
) -> Decision:
    """Decide on the test images of the snapshot whose bins neither version has learned from."""
    if champion is None:
        return promotion.first()
    if champion.tags.get(MODEL_TAG) == version.tags.get(MODEL_TAG):
        return Decision(promote=False, reason="it is the champion's own weights")
    learned_from = []
    for model in (version, champion):
        folder = workspace.snapshot(model.tags.get("snapshot", ""))
        if folder is None:
            reason = f"what version {model.version} has learned from is not in the workspace {workspace.root}"
            return promotion.refuse(f"{reason}, so that no bin is sure to be new to it", rules)
        learned_from.append(manifest.open_snapshot(folder))
    evaluations = []
    for model, known in ((version, evaluation), (champion, None)):
        tested = known or test(opened, model, snapshot, workspace, device)
        if tested is None:
            return promotion.refuse(f"version {model.version} tells other classes than the snapshot has", rules)
        evaluations.append(tested.predictions)
    unseen = promotion.unseen(snapshot, learned_from)
    challenger, defender = (table[table["image_id"].map(unseen)] for table in evaluations)
    columns = [f"p_{name}" for name in snapshot.classes.names]
    return promotion.decide(
        challenger["label"].to_numpy(np.int64),
        challenger["group"],
        challenger[columns].to_numpy(),
        defender[columns].to_numpy(),
        snapshot.classes,
        rules,
    )


def test(
    opened: Registry, version: Version, snapshot: Snapshot, workspace: Workspace, device: str
) -> Evaluation | None:
    """A version on the snapshot's test images; None where it tells other classes."""
    with tempfile.TemporaryDirectory() as temporary:
        checkpoint = opened.checkpoint(version, Path(temporary))
        spec = read_spec(checkpoint)
        if spec.classes != snapshot.classes:
            return None
        images = snapshot.labelled()
        images = images[images["split"] == "test"]  # the others need not be packed at this model's size
        pack = packs.update(snapshot.dataset, spec.images, images["path"], images["sha256"])
        folder = workspace.evaluation(snapshot.digest, weights_digest(checkpoint))
        return evaluate(snapshot, pack, checkpoint, folder, device)


def who() -> str:
    """Who moves an alias: the user and the host, and the flow run where there is one."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        user = f"uid {os.getuid()}"
    person = f"{user}@{socket.gethostname()}"
    return f"{person} in flow run {flow_run.name}" if flow_run.name else person
