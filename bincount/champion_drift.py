"""How unlike new images are to those that the champion was trained on.

A nightly run measures the drift and keeps it for the next ones. A drift that is kept is not announced again.
"""

import hashlib
import logging
import tempfile
from pathlib import Path

from bincount.data import snapshots
from bincount.data.packs import Pack
from bincount.data.snapshots import Snapshot
from bincount.errors import ModelNotFound
from bincount.evaluation import drift
from bincount.evaluation.drift import Accuracy, Drift
from bincount.evaluation.intervals import Score
from bincount.files import atomic_write, read_sealed, sealed
from bincount.lifecycle import NewData
from bincount.settings import DriftConfig, Job
from bincount.tracking.packaging import MODEL_TAG
from bincount.tracking.registry import Registry, Version
from bincount.workspace import Workspace

logger = logging.getLogger(__name__)


def measure(
    registry: Registry, new_data: NewData, snapshot: Snapshot, pack: Pack, job: Job
) -> tuple[Drift, Path | None]:
    """Measure how unlike the new images are to those of the champion.

    Returns the drift, and the file for keep where it was measured now: it is kept once it was announced.
    """
    if job.training.task != "counting":
        return Drift(num_new=new_data.num_new, note="the nightly run of the counting model measures the drift"), None
    champion, workspace = new_data.champion, Workspace(root=job.workspace)
    folder = champion and workspace.snapshot(champion.snapshot_digest)
    if folder is None:
        reason = f"the images of version {champion.version} are not here" if champion else "there is no champion"
        return Drift(num_new=new_data.num_new, note=f"nothing to compare with: {reason}"), None
    kept = _file(champion, snapshot, job.drift, workspace)
    if (measured := read(kept)) is not None:
        return measured, None
    trained_on = snapshots.open_snapshot(folder)
    accuracy, missing = None, ""
    if new_data.num_new >= job.drift.min_images and (test := champion.scores.get("accuracy")):
        try:
            accuracy = _score_new_images(registry, champion, snapshot, trained_on, test, job)
        except ModelNotFound as error:
            missing = f"the champion was not evaluated on the new images: {error}"
    measured = drift.detect(snapshot, trained_on, pack, job.drift, accuracy)
    measured = measured.model_copy(update={"note": "; ".join(filter(None, [measured.note, missing]))})
    return measured, kept


def keep(drift: Drift, path: Path) -> None:
    """Keep a drift in the file that measure named, which the next nightly runs read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text(sealed(drift.model_dump(mode="json")))


def _score_new_images(
    registry: Registry, champion: Version, snapshot: Snapshot, trained_on: Snapshot, test: Score, job: Job
) -> Accuracy | None:
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = registry.checkpoint(champion, Path(folder))
        return drift.score_new_images(snapshot, trained_on, checkpoint, test, job.drift, job.training.device)


def read(kept: Path) -> Drift | None:
    """Read the drift that an earlier run has kept; return None where there is none that can be used."""
    try:
        return Drift.model_validate(read_sealed(kept))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        logger.warning("%s is damaged (%s); the drift is measured again", kept, str(error).splitlines()[0])
        return None


def _file(champion: Version, snapshot: Snapshot, drift_config: DriftConfig, workspace: Workspace) -> Path:
    """Name the file by what the measurement follows from."""
    model = champion.tags.get(MODEL_TAG, champion.run_id)
    inputs = f"{champion.snapshot_digest} {champion.tags.get('test_accuracy')} {drift_config.model_dump_json()}"
    name = hashlib.sha256(inputs.encode()).hexdigest()[:12]
    return workspace.evaluation(snapshot.digest, model) / f"drift-{name}.json"
