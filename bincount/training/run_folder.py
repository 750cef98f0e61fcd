"""The folder of one training.

    .lock           held by the process that trains
    request.json    what to train, for the trainer's process
    error-RANK.json the error that ended a process of the trainer; empty when the disk was full
    checkpoint-*.pt weights, optimizer and position, to resume from; removed when the training has finished
    history.json    a record of each epoch so far
    model/          the weights of the epoch that is kept, and how to use them
    debug/          gradients, findings and a profile, with `--debug`
    trained.json    the result; written last, so that its existence means done

The folder's name is made from the training's inputs, so all that it holds belongs to one training.
"""

import json
import logging
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash
from pydantic import TypeAdapter

from bincount import cores, files
from bincount.data.folds import Fold
from bincount.data.packs import Pack
from bincount.data.pictures import DECODER_VERSION
from bincount.data.snapshots import Snapshot
from bincount.errors import DiskFull, ModelDamaged, ModelNotFound, TrainingFailed
from bincount.files import read_sealed, write_sealed
from bincount.settings import ImageConfig, TrainConfig
from bincount.training import pretrained
from bincount.training.spec import check_weights, read_spec
from bincount.workspace import Workspace

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

RESULT = "trained.json"  # written last
HISTORY = "history_xxh3"  # key in trained.json: the checksum of history.json


@dataclass(frozen=True)
class Request:
    """A training to be done: the data, the settings, and the folder that gets the result.

    With a fold, the images of that fold are not trained on. Of questions, bins is the snapshot that they are about;
    with it the model keeps from which probability on a change has happened (see limits).
    """

    snapshot: Snapshot
    pack: Pack
    images: ImageConfig
    training: TrainConfig
    folder: Path
    fold: Fold | None = None
    bins: Snapshot | None = None


def folder_by_settings(
    workspace: Workspace, snapshot: Snapshot, images: ImageConfig, training: TrainConfig, fold: Fold | None = None
) -> Path:
    """Return the folder of a snapshot and settings, as Workspace.run names it."""
    subset = f"{fold or ''}{name_positive(snapshot, training)}"
    return workspace.run(snapshot.digest, images, training, decoder=DECODER_VERSION, subset=subset)


def name_positive(snapshot: Snapshot, training: TrainConfig) -> str:
    """Return the positive class where a threshold is chosen for it, else nothing.

    The description of a problem, which names it, is no part of a snapshot's digest.
    """
    if training.miss_cost is None and training.min_precision is None:
        return ""
    label = snapshot.problem.positive_label(snapshot.classes)
    return "" if label is None else f"positive {snapshot.classes.names[label]}"


def folder_of(
    workspace: Workspace,
    snapshot: Snapshot,
    images: ImageConfig,
    training: TrainConfig,
    fold: Fold | None = None,
    *,
    threads: int | None = None,
) -> Path:
    """Return the folder of the training of a snapshot with these settings, which are resolved.

    For a network on a CPU its name ends with the number of threads, which changes the weights in their last bits:
    `-2t`. A training that has begun keeps its folder, and with it its number, however many cores are free by now. A new
    one gets the number that OMP_NUM_THREADS sets, or as many as there are free cores, and no more than `threads`. A
    folder without a number is of an earlier release.
    """
    folder = folder_by_settings(workspace, snapshot, images, training, fold)
    if not _has_threads(training) or folder.exists():
        return folder
    number = cores.omp_num_threads()
    if number is None:
        begun = [path for path in folder.parent.glob(f"{folder.name}-*") if num_threads(path)]
        if begun:
            return max(begun, key=lambda path: ((path / "trained.json").exists(), path.name))
        number = min(cores.num_free(), threads or cores.num_free())
    return folder.with_name(f"{folder.name}-{number}t")


def num_threads(folder: Path) -> int | None:
    """Return the number of threads of the network that the name of a folder ends with."""
    number = re.search(r"-(\d+)t$", folder.name)
    return int(number[1]) if number else None


def _has_threads(training: TrainConfig) -> bool:
    """Return whether the number of threads is chosen: not for the small network, which has one, nor for a mean."""
    return training.device == "cpu" and training.model != "small" and training.num_members == 1


def networks_of(images: ImageConfig, training: TrainConfig) -> list[tuple[ImageConfig, TrainConfig]]:
    """Return the settings of each network of a model, as they name its folder: of its images, and of its training.

    The settings of the training are resolved (training.device.resolve), which leaves the normalisation of members that
    are listed to each of them.
    """
    return [
        (own, member.model_copy(update={"normalization": name}))
        if isinstance(name := pretrained.resolve_normalization(member), str)
        else (own, member)
        for own, member in training.networks(images)
    ]


def write_request(request: Request) -> Path:
    """Write request.json into the request's folder with absolute paths, and return its path."""
    folder = request.folder.resolve()
    request = replace(
        request,
        snapshot=replace(request.snapshot, path=request.snapshot.path.resolve()),
        pack=replace(request.pack, folder=request.pack.folder.resolve()),
        folder=folder,
        bins=request.bins and replace(request.bins, path=request.bins.path.resolve()),
    )
    write_sealed(folder / "request.json", TypeAdapter(Request).dump_python(request, mode="json"))
    return folder / "request.json"


def read_request(path: Path) -> Request:
    """Read a request that write_request wrote. Raises TrainingFailed when the file is damaged."""
    try:
        return TypeAdapter(Request).validate_python(read_sealed(path))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise TrainingFailed(f"{path} is damaged ({reason}); run again, which writes it again") from None


@dataclass(frozen=True)
class Trained:
    """A finished training.

    Epochs count from 1. val_accuracy and val_loss belong to the best epoch, whose weights were kept; seconds and
    images_per_second measure training alone, without evaluation. For a model of several members best_epoch is the
    median, members holds the val accuracy of each member, and member_folders the names of their folders beside this
    one. keep is the setting of that name, and val_log_loss the log loss on val of the calibrated probabilities, where
    val_loss is that before; older releases wrote neither.
    """

    folder: Path
    best_epoch: int
    epochs: int
    val_accuracy: float
    val_loss: float
    seconds: float
    images_per_second: float
    members: tuple[float, ...] = ()
    member_folders: tuple[str, ...] = ()
    keep: str = ""
    val_log_loss: float | None = None

    @property
    def checkpoint(self) -> Path:
        """The folder of the kept weights, as model.load takes it."""
        return self.folder / "model"

    def history(self) -> "pd.DataFrame":
        """Return the curves of the training, a row an epoch. Raises ModelDamaged."""
        import pandas as pd

        return pd.DataFrame(read_history(self.folder)).set_index("epoch")

    def describe_epoch(self) -> str:
        """Return whose weights were kept: `epoch 13, the best of 15`, or `last of 20 epochs`."""
        if self.keep == "last":
            return f"last of {self.epochs} epochs"
        return f"epoch {self.best_epoch}, the best of {self.epochs}"

    @classmethod
    def read(cls, folder: Path) -> "Trained | None":
        """Read the result in a folder; None when the training there has not finished. Raises ModelDamaged."""
        result = _read_result(folder)
        if result is None:
            return None
        result.pop(HISTORY, None)
        lists = {name: tuple(result.get(name, ())) for name in ("members", "member_folders")}
        try:
            return cls(folder=folder, **result | lists)
        except TypeError as error:
            raise _damaged_training(folder / RESULT, str(error)) from None

    def write(self) -> None:
        """Write trained.json, which marks the training as finished."""
        result = asdict(self)
        del result["folder"]  # it can be moved
        if (self.folder / "history.json").exists():
            result[HISTORY] = _checksum(self.folder / "history.json")
        write_sealed(self.folder / RESULT, result)


def find_finished(folder: Path) -> Trained | None:
    """Return the result of a finished training whose files are intact, else None.

    When a file is damaged, the result is removed, so that the next training in this folder makes it again.
    """
    try:
        trained = Trained.read(folder)
        if trained is not None:
            read_history(folder)
            check_weights(trained.checkpoint, read_spec(trained.checkpoint))
    except ModelNotFound as error:
        logger.warning("the training in %s is repeated: %s", folder, error)
        (folder / RESULT).unlink(missing_ok=True)
        return None
    return trained


def read_history(folder: Path) -> list[dict]:
    """Read the records of the epochs so far; empty before the first has ended. Raises ModelDamaged."""
    path = folder / "history.json"
    if not path.exists():
        return []
    result = _read_result(folder) or {}
    try:
        if HISTORY in result and _checksum(path) != result[HISTORY]:
            raise ValueError("its checksum does not match")  # noqa: TRY301 - handled as an unreadable file
        history = json.loads(path.read_bytes())
        if not all(isinstance(record["epoch"], int) for record in history):
            raise ValueError("an epoch is no number")  # noqa: TRY301
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged_training(path, str(error)) from None
    return history


def _read_result(folder: Path) -> dict | None:
    path = folder / RESULT
    try:
        return read_sealed(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise _damaged_training(path, str(error)) from None


def _damaged_training(path: Path, reason: str) -> ModelDamaged:
    return ModelDamaged(f"{path} is damaged ({reason}); run again with the same settings to repeat this training")


def _checksum(path: Path) -> str:
    return xxhash.xxh3_64_hexdigest(path.read_bytes())


def write_error(folder: Path, error: Exception, rank: int) -> None:
    """Leave the error that ended a process of the trainer, for the process that started it."""
    path = folder / f"error-{rank}.json"
    try:
        write_sealed(path, _describe(error))
    except DiskFull:
        path.touch()  # an empty file needs no space, and read_error takes it for a full disk


def read_error(folder: Path) -> dict[str, str] | None:
    """Read the type and the message of the error that ended the training; None when no process left one."""
    path = next(iter(sorted(folder.glob("error*.json"))), None)
    if path is None:
        return None
    if not path.stat().st_size:
        return _describe(files.full(folder))
    try:
        error = read_sealed(path)
        return {"type": error["type"], "message": error["message"]}
    except (OSError, ValueError, KeyError) as damage:
        return _describe(
            TrainingFailed(f"the trainer ended with an error, and {path} is damaged ({damage}); run again")
        )


def _describe(error: Exception) -> dict[str, str]:
    return {"type": type(error).__name__, "message": str(error)}


def remove_errors(folder: Path) -> None:
    """Remove the errors of an earlier attempt."""
    for path in folder.glob("error*.json"):
        path.unlink()


def remove_leftovers(folder: Path) -> None:
    """Remove the half-written files of killed trainers. The caller holds the folder's lock."""
    for path in folder.rglob(".*.new"):
        path.unlink(missing_ok=True)
