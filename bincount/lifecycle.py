"""Decide what happens to a model: whether to train, and which version becomes champion.

Each function takes an open registry and returns a value, so that the policy is tested without Prefect. flow_run is the
id of the root flow run, or empty: a nightly run whose process was killed starts again under the same id, and must not
take its own versions for those of an earlier run.
"""

import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from bincount import approval
from bincount.comparison import compare, find_comparison_snapshot, show_champion
from bincount.data import snapshots
from bincount.data.manifest import REFERENCES
from bincount.data.snapshots import Snapshot
from bincount.errors import ModelNotFound
from bincount.evaluation import promotion, reviewing
from bincount.evaluation.decision import Decision
from bincount.evaluation.evaluate import Evaluation
from bincount.evaluation.reviewing import ReviewFigures
from bincount.files import atomic_write
from bincount.reporting import card
from bincount.settings import LONGEST_LICENCE, Device, ImageConfig, Job, TrainConfig
from bincount.tracking.approvals import find_closed_by, find_open, is_current
from bincount.tracking.champion import CHAMPION, AliasChange
from bincount.tracking.live import FOLDS_PARAM
from bincount.tracking.registry import Registry, Version
from bincount.tracking.runs import ROOT_FLOW_RUN_TAG
from bincount.training.spec import read_spec, weights_digest
from bincount.workspace import Workspace

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NewData:
    """The images added since the champion was trained; skip_reason is empty when a training is worthwhile.

    Without a champion, since is the last version of the same source and classes, if there is one. reviews are those
    since the same version; None where nothing was reviewed.
    """

    champion: Version | None
    num_new: int
    skip_reason: str = ""
    since: Version | None = None
    reviews: ReviewFigures | None = None

    def describe(self) -> str:
        """Return, for example, `new since version 3, the champion`."""
        if self.champion:
            return f"new since version {self.champion.version}, the champion"
        if self.since:
            return f"new since version {self.since.version}, the last, as none is champion"
        return "new, since there was no champion"


@dataclass(frozen=True)
class Promotion:
    """The version as it is after a comparison, and the decision.

    to_announce says whether people are to be notified: the version became champion by this flow run, or waits for
    approval since this flow run, or would be champion and does not start.
    """

    version: Version
    decision: Decision
    to_announce: bool


def find_new_data(registry: Registry, snapshot: Snapshot, job: Job, *, flow_run: str = "") -> NewData:
    """Count the images added since the champion was trained, and decide whether a training is worthwhile."""
    registry.recover_pending()  # a nightly run that was killed may have left an alias change pending
    champion = _find_champion_before(registry, flow_run)
    since = champion or _find_last(registry, snapshot, flow_run)
    if since is None:
        reviews = None if _is_of_questions(snapshot) else reviewing.measure(snapshot, None, None)
        return NewData(None, snapshot.num_images, reviews=reviews)
    folder = Workspace(root=job.workspace).snapshot(since.snapshot_digest)
    if folder:
        earlier = snapshots.open_snapshot(folder)
        num_new, frozen = _count_new(snapshot, earlier), min(earlier.frozen, since.registered)
    else:  # it was trained elsewhere
        earlier, num_new, frozen = None, max(0, snapshot.num_images - since.num_images), since.registered
    reviews = None if _is_of_questions(snapshot) else reviewing.measure(snapshot, earlier, frozen)
    new_data = NewData(champion, num_new, since=since, reviews=reviews)
    # A version that is neither champion nor decided about is compared by this run, also where nothing is new.
    if champion or _is_settled(since):
        new_data = replace(new_data, skip_reason=_why_skip(registry, snapshot, new_data, job, flow_run))
    logger.info(
        "%s images are %s", f"{num_new:,}", ". ".join(filter(None, [new_data.describe(), new_data.skip_reason]))
    )
    return new_data


def _count_new(snapshot: Snapshot, earlier: Snapshot) -> int:
    """Count the images that are new since an earlier snapshot; of questions those that none of the earlier is about."""
    if not _is_of_questions(snapshot):
        return len(snapshot.since(earlier))
    pictures = snapshot.labelled()["sha256"].drop_duplicates()
    return int((~snapshots.is_in(pictures, earlier.labelled()["sha256"])).sum())


def _is_of_questions(snapshot: Snapshot) -> bool:
    return REFERENCES in snapshot.read()


def _find_champion_before(registry: Registry, flow_run: str) -> Version | None:
    """Find the champion from before this flow run, which may have promoted another before it was started again."""
    champion, history = registry.find_champion(), registry.history()
    if champion and history and history[-1].version == champion.version and _is_of(champion, flow_run):
        with suppress(ModelNotFound):
            return registry.find(str(history[-1].over)) if history[-1].over else None
    return champion


def _find_last(registry: Registry, snapshot: Snapshot, flow_run: str) -> Version | None:
    """Find the last version of a snapshot's source and classes that another flow run has registered."""
    same = {"source": snapshot.source, "classes": ",".join(snapshot.classes.names)}
    versions = (version for version in registry.versions() if same.items() <= version.tags.items())
    return next((version for version in versions if not _is_of(version, flow_run)), None)


def _is_settled(version: Version) -> bool:
    """Return whether a decision was taken and carried out; a run may have been killed before or in between."""
    return version.decision is not None and (version.is_promoted or not version.decision.promote)


def _is_of(version: Version, flow_run: str) -> bool:
    return bool(flow_run) and version.tags.get(ROOT_FLOW_RUN_TAG) == flow_run


def _why_skip(registry: Registry, snapshot: Snapshot, new_data: NewData, job: Job, flow_run: str) -> str:
    if new_data.num_new < job.retraining.min_new_images:
        return (
            f"Nothing was trained: {new_data.num_new:,} images are {new_data.describe()}, "
            f"and a training needs {job.retraining.min_new_images:,} (min_new_images)"
        )
    each_settings = _identifying_settings(job)
    defaults = {**ImageConfig().model_dump(), **TrainConfig().params(), FOLDS_PARAM: ""}
    for version in registry.versions_of(snapshot.digest):
        # This run carries out a promotion that another decided and did not come to.
        if (
            _is_of(version, flow_run)
            or not _is_settled(version)
            or not any(registry.runs.was_trained_with(version.run_id, settings, defaults) for settings in each_settings)
        ):
            continue
        rollback = registry.find_rollback(version)
        since = f"It was {rollback.describe()}" if rollback else version.decision.summary()
        return f"Nothing was trained: version {version.version} was trained on these images already. {since}"
    return ""


def _identifying_settings(job: Job) -> list[Mapping]:
    """Return the settings by which trainings differ, in each of the forms that a training with them may have.

    auto may stand for another device or precision on the machine of another run, which alone is no reason to train
    again; a warm start replaces the weights that the settings name, those of members too, unless the champion was
    another kind of model. The mean of the networks of folds, each of which has trained on a part, is a training with
    these settings only where they register it.
    """
    chosen = {name for name in ("precision", "normalization") if getattr(job.training, name) == "auto"}
    no_reason = chosen | {"device", "weights_licence"}
    if job.retraining.warm_start:
        no_reason.add("weights")
    trainings = [job.training, *([job.training.start_all_from("")] if job.retraining.warm_start else [])]
    folds = job.evaluation.cross_fit if job.evaluation.register_cross_fit else ""
    each_settings = [
        {**job.images.model_dump(), **(training.repeat_members(folds) if folds else training).params()}
        for training in trainings
    ]
    return [
        {name: value for name, value in settings.items() if name not in no_reason} | {FOLDS_PARAM: folds}
        for settings in each_settings
    ]


def start_from_champion(registry: Registry, champion: Version, job: Job) -> TrainConfig:
    """Return the training settings with the champion's weights, or as they are where it is another kind of model.

    With the weights comes the licence of those that the champion itself has started from.
    """
    training = job.training
    with tempfile.TemporaryDirectory() as folder:
        try:
            checkpoint = registry.checkpoint(champion, Path(folder))
        except ModelNotFound as error:
            logger.warning("not started from the champion's weights: %s", error)
            return training
        spec = read_spec(checkpoint)
        there = {(network.model, network.head) for network in spec.each_network()}
        if not there.issuperset((member.model, member.head) for member in training.each_member()):
            logger.warning(
                "version %d is a %s and the settings ask for a %s: not started from its weights",
                champion.version,
                spec.describe_networks(),
                training.describe_networks(),
            )
            return training
        # Named by its content, so that a retry finds the same settings and resumes.
        kept = Workspace(root=job.workspace).weights(weights_digest(checkpoint))
        kept.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(kept) as temporary:
            shutil.copyfile(checkpoint / "model.safetensors", temporary)
    licence = spec.weights_licence[:LONGEST_LICENCE] or training.weights_licence
    return training.start_all_from(str(kept)).model_copy(update={"weights_licence": licence})


def promote(
    registry: Registry,
    version: Version,
    snapshot: Snapshot,
    job: Job,
    *,
    by: str,
    device: Device = "auto",
    evaluation: Evaluation | None = None,
    flow_run: str = "",
) -> Promotion:
    """Make a version champion if it is significantly better than the one there is; its card and tags say why.

    Without a champion it has to be better than always predicting the most frequent class. It also has to start, and
    where job.promotion requires it people have to approve. evaluation is of the version on the snapshot's test images,
    where there is one; by names who asks for this. A comparison takes minutes, in which people may change their answer:
    then it is decided again.
    """
    registry.recover_pending()
    asked = job
    while True:
        version = registry.find(str(version.version))
        job = _as_asked(asked, version)
        champion = registry.find_champion()
        if champion and champion.version == version.version:
            if kept := _keep_champion(registry, champion, flow_run):
                return kept
            continue
        decision = _decided_by_people(registry, version, champion, job) or _with_remedy(
            compare(registry, version, champion, snapshot, job, device=device, evaluation=evaluation), version
        )
        decision = approval.require_start(registry, version, snapshot, decision)
        if not is_current(registry, version):
            logger.info("people have answered meanwhile: deciding about version %d again", version.version)
            continue
        decision, asks = approval.require_approval(registry, version, decision, job, flow_run)
        registry.describe(version, card.with_comparison(registry.card(version), decision))
        registry.record_decision(version, decision)
        if decision.promote and not (
            is_current(registry, version)
            and registry.promote(version, champion, by=by, reason=decision.reason, flow_run=flow_run)
        ):
            logger.info("another version became champion meanwhile, or people have answered: deciding again")
        elif approval.close(registry, version, decision, flow_run):
            break
    logger.info("%s version %d: %s", version.name, version.version, decision.describe(), extra={"in_result": True})
    if evaluation:
        try:
            show_champion(registry, version, champion, snapshot, job, evaluation, decision, device=device)
        except Exception as error:  # noqa: BLE001 - whatever it is, the decision stands
            logger.warning("the page of the test was not written again with the decision: %s", error)
    to_announce = decision.promote or asks or not decision.starts
    return Promotion(registry.find(str(version.version)), decision, to_announce)


def carry_out_approvals(
    registry: Registry, snapshot: Snapshot, job: Job, *, by: str, device: Device = "auto", flow_run: str = ""
) -> Iterator[Promotion]:
    """Carry out what people have said of versions that wait: promote those that are better than the champion of now.

    snapshot is the last one of the dataset. Yields what became of each version as soon as it is done, the oldest first,
    so that it can be announced whatever becomes of the next. Before come those of an earlier try of this flow run,
    which may not have announced them.
    """
    for version in find_closed_by(registry, flow_run):
        if version.decision:
            to_announce = _has_promoted(registry, version, flow_run) or not version.decision.starts
            yield Promotion(version, version.decision, to_announce)
    for listed, _ in find_open(registry):
        version = registry.find(str(listed.version))  # a comparison takes minutes, in which people may answer
        answer = version.approval
        if version.alias == CHAMPION:  # made so by hand, or by a run that was killed
            if kept := _keep_champion(registry, version, flow_run):
                yield kept
        elif answer is None or not answer.is_answered or answer.unclear:
            continue
        elif answer.state == "rejected":
            decision = approval.record_rejection(registry, version, flow_run)
            yield Promotion(registry.find(str(version.version)), decision, to_announce=False)
        else:
            compared_on = find_comparison_snapshot(snapshot)
            yield promote(registry, version, compared_on, job, by=by, device=device, flow_run=flow_run)


def _as_asked(job: Job, version: Version) -> Job:
    """Return the settings with what people were asked to approve, and without what they have rejected since."""
    force = job.promotion.force
    if approval.is_forced(version.approval):
        force = True
    elif version.approval and version.approval.state == "rejected" and version.approval.is_answered:
        force = False
    return job.replace(promotion=job.promotion.model_copy(update={"force": force}))


def _keep_champion(registry: Registry, champion: Version, flow_run: str) -> Promotion | None:
    """Leave a version champion that is it already; None where people have said something about it meanwhile.

    An earlier try of this flow run may have promoted it without announcing it.
    """
    change = _last_change_to(registry, champion)
    since = change.describe() if change else "moved there by hand"
    if rejection := approval.find_rejection(champion):
        since = f"{since}; it was {rejection}, and `bincount rollback` takes it back"
    decision = Decision(promote=False, is_champion=True, reason=since)
    if not approval.close(registry, champion, decision, flow_run):
        return None
    return Promotion(champion, decision, _has_promoted(registry, champion, flow_run))


def _has_promoted(registry: Registry, version: Version, flow_run: str) -> bool:
    """Return whether a flow run has promoted a version; False without its id."""
    of_it = [change for change in registry.history() if change.version == version.version]
    return bool(flow_run and of_it and of_it[-1].action == "promoted" and of_it[-1].flow_run == flow_run)


def _last_change_to(registry: Registry, champion: Version) -> AliasChange | None:
    history = registry.history()
    return history[-1] if history and history[-1].version == champion.version else None


def _decided_by_people(registry: Registry, version: Version, champion: Version | None, job: Job) -> Decision | None:
    """Return what follows from what people did to the versions, who know more than the test bins do."""
    if rollback := registry.find_rollback(version):
        return promotion.refuse(f"it was {rollback.describe()}", job.promotion)
    if rejection := approval.find_rejection(version):
        return promotion.refuse(f"it was {rejection}", job.promotion, is_first=champion is None)
    if champion is None and registry.history():
        reason = f"the champion was removed in MLflow; `bincount promote {version.argument} --force` makes it this one"
        return promotion.refuse(reason, job.promotion)
    return None


def _with_remedy(decision: Decision, version: Version) -> Decision:
    """Say how to have a champion all the same: without one nothing else does."""
    if decision.promote or not decision.is_first:
        return decision
    remedy = f"`bincount promote {version.argument} --force` makes it champion all the same"
    return decision.model_copy(update={"reason": f"{decision.reason}; {remedy}"})
