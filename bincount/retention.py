"""Remove what the workspace keeps and no registered version needs, after some days.

A version needs the training that it came from, those of the members that it averages, and the snapshot that all of them
were trained on, on which the next challenger is compared. Those stay, whatever registered model the version is of and
whatever its alias or stage. So do the latest snapshot of each dataset, trainings under way, and all that is young.
Versions are those of the registry that is asked and those in the workspace's own SQLite, which somebody who has moved
to a server may have left there.

Nothing is removed but folders and files whose names the pipeline makes:

    runs/SNAPSHOT-SETTINGS               trainings
    evaluations/SNAPSHOT-MODEL           tests, which are made again when they are asked for
    audits/SNAPSHOT-NETWORKS             audits; what people found stays in the dataset
    weights/DIGEST.safetensors           what trainings started from, put there again by the next that does
    datasets/NAME/snapshots/DIGEST       snapshots
    .NAME.gone and .DIGEST.PID beside    what a killed removal or a killed prepare has left
    audits/.fetched-NAME                 the model that a killed audit has fetched
"""

import functools
import logging
import os
import re
import shutil
import stat
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from bincount.errors import ModelDamaged, ModelNotFound
from bincount.settings import RetentionConfig
from bincount.tracking.lineage import Lineage, LineageReader
from bincount.tracking.registry import Registry
from bincount.training.run_folder import Trained
from bincount.training.spec import weights_digest
from bincount.workspace import Workspace

logger = logging.getLogger(__name__)

LEFTOVER, TRAINING, TEST, AUDIT = "leftover", "training", "test", "audit"
WEIGHTS, SNAPSHOT = "weights", "snapshot"
SHORT = 12  # digits of a snapshot's digest in the names of trainings and tests
GONE = ".gone"
# A test and an audit are named as a training is, but for its number of threads.
TRAINING_NAME, SNAPSHOT_NAME = r"[0-9a-f]{12}-[0-9a-f]{12}(-\d+t)?", r"[0-9a-f]{32}"
WEIGHTS_NAME = r"[0-9a-f]{16}\.safetensors"
# In the order of removal: a snapshot goes when the last training on it has gone.
NAMES = (
    (LEFTOVER, "runs", rf"\.{TRAINING_NAME}{GONE}"),
    (LEFTOVER, "evaluations", rf"\.{TRAINING_NAME}{GONE}"),
    (LEFTOVER, "audits", rf"\.({TRAINING_NAME}{GONE}|fetched-\w+)"),
    (LEFTOVER, "weights", rf"\.{WEIGHTS_NAME}{GONE}"),
    (LEFTOVER, "datasets/*/snapshots", rf"\.{SNAPSHOT_NAME}({GONE}|\.\d+)"),
    (TRAINING, "runs", TRAINING_NAME),
    (TEST, "evaluations", TRAINING_NAME),
    (AUDIT, "audits", TRAINING_NAME),
    (WEIGHTS, "weights", WEIGHTS_NAME),
    (SNAPSHOT, "datasets/*/snapshots", SNAPSHOT_NAME),
)
PLACE_NAME = re.compile("|".join(name for _, _, name in NAMES))


@dataclass(frozen=True)
class Place:
    """A folder or a file that may be removed: its size, days since it changed, and why it goes or stays."""

    path: Path
    kind: str
    num_bytes: int
    days: float
    why: str = ""


@dataclass(frozen=True)
class Plan:
    """The places that would be removed from a workspace, in this order, and those that stay."""

    workspace: Workspace
    config: RetentionConfig
    now: datetime
    going: tuple[Place, ...]
    staying: tuple[Place, ...]


@dataclass(frozen=True)
class Removed:
    """The places that were removed, and those that a plan had named and that stay after all."""

    gone: tuple[Place, ...]
    left: tuple[Place, ...]

    @property
    def num_bytes(self) -> int:
        return sum(place.num_bytes for place in self.gone)


def plan(workspace: Workspace, registry: Registry, retention_config: RetentionConfig, now: datetime) -> Plan:
    """Find what may be removed; change nothing.

    Raises ServiceUnavailable when the registry cannot be read, and ModelNotFound when it has no version of anything in
    this workspace, so that it is likely to be another one, or when what the workspace's own SQLite has cannot be told.
    """
    reader = LineageReader(registry, workspace)
    lineage = reader.read()
    places = _find(workspace, now)
    reasons = _reasons_to_stay(places, reader.read_own() | lineage, retention_config)
    going = tuple(replace(place, why=_why_it_goes(place)) for place in places if place.path not in reasons)
    staying = tuple(replace(place, why=reasons[place.path]) for place in places if place.path in reasons)
    known = lineage.snapshots.keys() | lineage.trainings.keys()
    if not known & {place.path.name for place in places} and any(place.kind != LEFTOVER for place in going):
        raise ModelNotFound(
            f"{reader.tracking_uri} has no version of anything in {workspace.root}, so that it may not be where its "
            "models are registered, and nothing is removed; correct --tracking-uri or --workspace"
        )
    return Plan(workspace, retention_config, now, going, staying)


def remove(plan: Plan, registry: Registry) -> Removed:
    """Remove the places that a plan names; just before each, check whether the registry or the workspace has changed.

    All of both is read again only after a change, so that the time grows with the number of places and not with its
    square. Each is renamed before it is deleted: what is there under its own name is whole, and the next
    removal ends what this one did not. Raises ServiceUnavailable or ModelNotFound when the registry, or the workspace's
    SQLite, cannot be read any more; what went before that is gone.
    """
    view = _View(plan, registry)
    gone, left = [], []
    for place in plan.going:
        try:
            with _held(place):
                why = view.why_it_stays(place)
                if not why:
                    _delete(place.path)
                    view.forget(place)
        except Timeout:
            why = "another process is at work there"
        except FileNotFoundError:
            why = "it is gone already"
        except OSError as error:
            why = f"it cannot be removed: {error}"
        if why:
            left.append(replace(place, why=why))
            logger.info("%s was not removed: %s", place.path, why, extra={"in_result": True})
        else:
            gone.append(place)
            about = (place.path, place.num_bytes / 1e6, place.why)
            logger.info("removed %s, %.1f MB: %s", *about, extra={"in_result": True})
    return Removed(tuple(gone), tuple(left))


class _View:
    """The registry and the workspace as they were read last, read again after a change.

    A change shows in the version that was registered or updated last, in the names of all places, in the times of
    trainings' folders, which change when a trainer begins, and in which snapshots are the latest.
    """

    def __init__(self, plan: Plan, registry: Registry):
        self._plan, self._reader = plan, LineageReader(registry, plan.workspace)
        self._state: dict | None = None
        self._places: dict[Path, Place] = {}
        self._reasons: dict[Path, str] | None = None  # None: to be found again

    def why_it_stays(self, place: Place) -> str:
        """Return why a place stays now, empty where it still goes; only for who holds the place's lock."""
        state = self._read_state()
        # The time of the place's folder may be that of its lock.
        if self._state is None or state | {place.path: 0} != self._state | {place.path: 0}:
            # The state was read before the rest: what changes meanwhile makes the next state differ.
            self._lineage = self._reader.read_own() | self._reader.read()
            self._places = {found.path: found for found in _find(self._plan.workspace, self._plan.now)}
            self._state, self._reasons = state, None
        elif place.path in self._places:
            found = _measure(place.path, place.kind, self._plan.now)
            if found.days < self._places[place.path].days:
                self._reasons = None
            self._places[place.path] = found
        if self._reasons is None or place.kind != self._kind:  # a snapshot goes after the trainings on it
            self._reasons = _reasons_to_stay(
                list(self._places.values()), self._lineage, self._plan.config, removing=True
            )
            self._kind = place.kind
        return self._reasons.get(place.path, "")

    def forget(self, place: Place) -> None:
        """Note that a place was removed here, which is no change that others have made."""
        self._state.pop(place.path, None)
        self._places.pop(place.path, None)

    def _read_state(self) -> dict:
        """Return what differs after a change, from one request and the names of folders."""
        workspace = self._plan.workspace
        state = {"registry": self._reader.state()}
        for folder in {folder for _, folder, _ in NAMES}:
            for parent in workspace.root.glob(folder):
                state |= _entries(parent, with_times=folder == "runs")
        for path in workspace.root.glob("datasets/*/snapshots/latest"):
            state[path] = _latest(path.parent)
        return state


def _entries(folder: Path, *, with_times: bool) -> dict[Path, int]:
    """Return the folder's entries that are named as places are, and when each changed."""
    found = {}
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if PLACE_NAME.fullmatch(entry.name) and not entry.is_symlink():
                with suppress(FileNotFoundError):  # another removal was quicker
                    found[Path(entry.path)] = entry.stat().st_mtime_ns if with_times else 0
    return found


def _find(workspace: Workspace, now: datetime) -> list[Place]:
    return [
        _measure(path, kind, now)
        for kind, folder, name in NAMES
        for path in sorted(workspace.root.glob(f"{folder}/*"))
        if re.fullmatch(name, path.name) and not path.is_symlink()
    ]


def _measure(path: Path, kind: str, now: datetime) -> Place:
    inside = [Path(folder) / name for folder, _, names in os.walk(path) for name in names]
    # The lock's time changes when somebody asks whether it is held.
    files = [file for file in inside if file.name != ".lock"] or [path]
    num_bytes, changed = 0, 0.0
    for file in files:
        with suppress(FileNotFoundError):  # a trainer at work has just replaced it
            found = file.lstat()
            num_bytes += found.st_size if stat.S_ISREG(found.st_mode) else 0
            changed = max(changed, found.st_mtime)
    return Place(path, kind, num_bytes, (now.timestamp() - changed) / 86400)


def _reasons_to_stay(
    places: Sequence[Place], lineage: Lineage, retention_config: RetentionConfig, *, removing: bool = False
) -> dict[Path, str]:
    """Return why each place stays that does.

    removing: the caller holds the lock of the place in question, and a snapshot stays for every training that is there.
    """
    trainings = [place for place in places if place.kind == TRAINING]
    reasons = _needed_trainings(trainings, lineage, retention_config)
    # Members of one model are trained one after the other, and no version needs them before the last has ended.
    beside = {short: min(place.days for place in of) for short, of in _by_snapshot(trainings).items()}
    for place in trainings:
        if place.path in reasons:
            continue
        if place.days < retention_config.keep_days:
            reasons[place.path] = _young(place)
        elif beside[_short(place)] < retention_config.keep_days:
            reasons[place.path] = "another training on its snapshot is young"
        elif not removing and _is_locked(place.path):
            reasons[place.path] = "a trainer is at work there"
    used = {_short(place) for place in trainings if removing or place.path in reasons}
    latest = {place.path.parent: _latest(place.path.parent) for place in places if place.kind == SNAPSHOT}
    for place in places:
        if place.kind == SNAPSHOT and (why := _why_a_snapshot_stays(place, latest[place.path.parent], lineage, used)):
            reasons[place.path] = why
        elif place.kind in (TEST, AUDIT) and _short(place) in {digest[:SHORT] for digest in latest.values()}:
            reasons[place.path] = "it is on a latest snapshot"
        elif place.days < retention_config.keep_days and not place.path.name.endswith(GONE):
            reasons.setdefault(place.path, _young(place))
    return reasons


def _needed_trainings(
    trainings: Sequence[Place], lineage: Lineage, retention_config: RetentionConfig
) -> dict[Path, str]:
    """Return those that versions came from, by name or by their weights, and those of their members, and why."""
    reasons, members = {}, {}
    for place in trainings:
        version = lineage.trainings.get(place.path.name)
        # Its run may have another name by now, or be gone.
        if version is None and place.days >= retention_config.keep_days:
            version = lineage.weights.get(_weights(place.path, place.days))
        if version is None:
            continue
        reasons[place.path] = f"{version} came from it"
        try:
            trained = Trained.read(place.path)
        except ModelDamaged:  # so that any training on the snapshot may be one of its members
            members |= dict.fromkeys(
                (each.path.name for each in _by_snapshot(trainings)[_short(place)]), f"{version} may average it"
            )
            continue
        if trained and trained.members:
            # Where it was made before they were recorded, any training on the snapshot may be one.
            beside = [each.path.name for each in _by_snapshot(trainings)[_short(place)]]
            members |= dict.fromkeys(trained.member_folders or beside, f"{version} averages it")
    return {place.path: members[place.path.name] for place in trainings if place.path.name in members} | reasons


def _why_a_snapshot_stays(place: Place, latest: str, lineage: Lineage, used: Container[str]) -> str:
    if not latest:
        return "which snapshot of its dataset is the latest cannot be read"
    if place.path.name == latest:
        return "it is the latest of its dataset"
    if place.path.name in lineage.snapshots:
        return f"{lineage.snapshots[place.path.name]} was trained on it"
    return "a training that stays was trained on it" if _short(place) in used else ""


def _why_it_goes(place: Place) -> str:
    if place.kind == LEFTOVER:
        return "a killed run left it half written or half removed"
    if place.kind in (TEST, AUDIT):
        return "it is not on a latest snapshot, and is made again when asked for"
    return "no registered version needs it"


def _young(place: Place) -> str:
    return f"it changed {max(place.days, 0):.1f} days ago"


def _short(place: Place) -> str:
    """Return how the names of a snapshot, its trainings and its tests begin."""
    return place.path.name[:SHORT]


def _by_snapshot(places: Sequence[Place]) -> dict[str, list[Place]]:
    found = {}
    for place in places:
        found.setdefault(_short(place), []).append(place)
    return found


def _latest(snapshots: Path) -> str:
    try:
        return (snapshots / "latest").read_text().strip()
    except OSError:
        return ""


@functools.cache
def _weights(folder: Path, _days: float) -> str:
    """Return the SHA-256 of a training's weights, read once while its age is the same; empty where there are none."""
    try:
        return weights_digest(folder / "model")
    except OSError:
        return ""


def _is_locked(training: Path) -> bool:
    if not (training / ".lock").exists():  # asking would make one
        return False
    try:
        with FileLock(training / ".lock").acquire(timeout=0):
            return False
    except Timeout:
        return True


@contextmanager
def _held(place: Place) -> Iterator[None]:
    """Hold the lock of a training's trainer, or that of the prepare that may make a snapshot the latest again.

    Raises Timeout when somebody has it.
    """
    place.path.lstat()  # else the lock would make the folder again
    folder = {TRAINING: place.path, SNAPSHOT: place.path.parents[1]}.get(place.kind)
    with FileLock(folder / ".lock").acquire(timeout=0) if folder else nullcontext():
        yield


def _delete(path: Path) -> None:
    if path.name.startswith("."):
        gone = path
    else:
        gone = path.with_name(f".{path.name}{GONE}")
        path.rename(gone)
    if gone.is_dir():
        shutil.rmtree(gone)
    else:
        gone.unlink()
