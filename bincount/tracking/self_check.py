"""Some test pictures with the probabilities that a version gave them in its test, kept with its files.

Whoever loads the version, on whatever machine and with whatever libraries, can ask it about the same pictures and see
whether it still predicts as it did. The folder `check` of a version's files has the pictures as PNG files at the size
of the network's input, which decode to the pixels of the test, and, beside them, check.json.
"""

import io
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow
import numpy as np
import pandas as pd
from mlflow import MlflowClient
from PIL import Image

from bincount.data import bins
from bincount.data.manifest import REFERENCES
from bincount.data.packs import Pack
from bincount.data.snapshots import Snapshot
from bincount.errors import BincountError, ModelChanged, ModelDamaged, ServiceUnavailable, mask_credentials
from bincount.evaluation.evaluate import probability_columns
from bincount.files import raise_on_disk_full, read_sealed, write_sealed
from bincount.problem import Classes
from bincount.tracking.champion import ignore_missing
from bincount.tracking.download import FETCH_ERRORS, REMEDY

if TYPE_CHECKING:
    from bincount.tracking.registry import Registry, Version

FOLDER, FILE = "check", "check.json"
NUM_PICTURES = 12
# Engines promise probabilities within 0.002 of the network's in float32, in which the test was predicted, on a CPU or
# a GPU of another arithmetic; the rest is room for the latter. Other pixels, weights, classes or another temperature
# change those of some picture by more.
TOLERANCE = 0.005


@dataclass(frozen=True)
class Example:
    """An input of a model: a picture file, and of a question its references and the quantity that is asked."""

    picture: bytes
    references: tuple[bytes, ...] = ()
    asked: int | None = None


@dataclass(frozen=True, eq=False)
class SelfCheck:
    """Picture files with the probabilities (N, C) of the classes that a version gave them in its test.

    Where the version answers questions, references has the other pictures of each, reference_ids their bins, and asked
    the quantities, 0 where none is asked; else they are empty.
    """

    image_ids: tuple[str, ...]
    pictures: tuple[bytes, ...]
    probabilities: np.ndarray
    classes: Classes
    references: tuple[tuple[bytes, ...], ...] = ()
    reference_ids: tuple[tuple[str, ...], ...] = ()
    asked: tuple[int, ...] = ()

    @classmethod
    def choose(cls, snapshot: Snapshot, pack: Pack, predictions: pd.DataFrame) -> "SelfCheck":
        """Choose pictures of a test, of every class and from sure to unsure; predictions are as Evaluation has them."""
        columns = probability_columns(snapshot.classes)
        by_confidence = predictions.assign(confidence=predictions[columns].max(axis=1)).sort_values(
            ["label", "confidence", "image_id"]
        )
        places = np.linspace(0, len(by_confidence) - 1, min(NUM_PICTURES, len(by_confidence))).round().astype(int)
        chosen = by_confidence.iloc[places]
        rows = snapshot.labelled().set_index("image_id").loc[chosen["image_id"]]
        image_ids, of_questions = tuple(chosen["image_id"]), {}
        if REFERENCES in rows:
            known = bins.read(snapshot.dataset, ["image_id", "sha256"]).drop_duplicates("sha256")
            bin_of = known.set_index("sha256")["image_id"]
            references = [list(digests) for digests in rows[REFERENCES]]
            image_ids = tuple(bin_of[rows["sha256"]])
            of_questions = {
                "references": tuple(_as_files(pack, digests) for digests in references),
                "reference_ids": tuple(tuple(bin_of[digests]) for digests in references),
                "asked": tuple(rows["asked"].fillna(0).astype(int)),
            }
        return cls(
            image_ids=image_ids,
            pictures=_as_files(pack, rows["sha256"].tolist()),
            probabilities=chosen[columns].to_numpy(np.float32),
            classes=snapshot.classes,
            **of_questions,
        )

    def compare(self, probabilities: np.ndarray, name: str) -> float:
        """Return the largest difference of probabilities (N, C) from those of the test.

        name says whose they are. Raises ModelChanged where it is more than TOLERANCE.
        """
        difference = float(np.abs(probabilities - self.probabilities).max())
        if not difference <= TOLERANCE:  # also where one is not a number
            raise ModelChanged(
                f"{name} does not predict as in its test: the probabilities of {len(self.pictures)} pictures differ by "
                f"up to {difference:.4f}, and {TOLERANCE} is allowed; install the packages of its requirements.txt, "
                f"or train it again; {REMEDY}"
            )
        return difference


def write(folder: Path, check: SelfCheck) -> None:
    """Write the folder `check` into that of a version's files. Raises DiskFull."""
    within = folder / FOLDER
    within.mkdir(parents=True, exist_ok=True)
    names = [f"{number:02d}.png" for number in range(len(check.pictures))]
    entries = [
        {"file": name, "image_id": image_id, "probabilities": probabilities}
        for name, image_id, probabilities in zip(names, check.image_ids, check.probabilities.tolist(), strict=True)
    ]
    files = dict(zip(names, check.pictures, strict=True))
    for number, references in enumerate(check.references):
        own = [f"{number:02d}-{place}.png" for place in range(len(references))]
        files |= dict(zip(own, references, strict=True))
        listed = zip(own, check.reference_ids[number], strict=True)
        entries[number] |= {
            "references": [{"file": name, "image_id": image_id} for name, image_id in listed],
            "asked": check.asked[number],
        }
    with raise_on_disk_full(within):
        for name, picture in files.items():
            (within / name).write_bytes(picture)
    content = {"classes": list(check.classes.names), "ordered": check.classes.ordered, "pictures": entries}
    write_sealed(within / FILE, content)


def read(registry: "Registry", version: "Version") -> SelfCheck | None:
    """Fetch what a version was registered with; None of versions of earlier releases, which have none.

    Raises ModelDamaged where it is not what was written, and ServiceUnavailable where it cannot be fetched now.
    """
    client, where = registry.client, mask_credentials(registry.client.tracking_uri)
    source = ""
    try:
        with ignore_missing():
            source = client.get_model_version_download_uri(version.name, str(version.version))
            there = mlflow.artifacts.list_artifacts(artifact_uri=source, tracking_uri=client.tracking_uri)
            if FOLDER not in {Path(file.path).name for file in there}:
                return None
            with tempfile.TemporaryDirectory() as folder, raise_on_disk_full(Path(folder)):
                fetched = mlflow.artifacts.download_artifacts(
                    f"{source}/{FOLDER}", dst_path=folder, tracking_uri=client.tracking_uri
                )
                return read_folder(Path(fetched))
    except BincountError:
        raise
    except FETCH_ERRORS as error:
        raise ServiceUnavailable(
            f"the pictures to check {version.uri} with cannot be fetched from MLflow at {where} now "
            f"({mask_credentials(error)}); try again"
        ) from error
    return None


def read_folder(folder: Path) -> SelfCheck | None:
    """Read what write has written into the folder `check` itself; None where all of its pictures are gone.

    A picture that is gone was taken away on purpose, as `bincount forget` asks for. Raises ModelDamaged.
    """
    try:
        content = read_sealed(folder / FILE)
        entries = [
            entry
            for entry in content["pictures"]
            if all((folder / each["file"]).exists() for each in (entry, *entry.get("references", ())))
        ]
        if not entries:
            return None
        of_questions = {}
        if "references" in entries[0]:
            of_questions = {
                "references": tuple(
                    tuple((folder / each["file"]).read_bytes() for each in entry["references"]) for entry in entries
                ),
                "reference_ids": tuple(tuple(each["image_id"] for each in entry["references"]) for entry in entries),
                "asked": tuple(entry["asked"] for entry in entries),
            }
        return SelfCheck(
            image_ids=tuple(entry["image_id"] for entry in entries),
            pictures=tuple((folder / entry["file"]).read_bytes() for entry in entries),
            probabilities=np.array([entry["probabilities"] for entry in entries], np.float32),
            classes=Classes(names=tuple(content["classes"]), ordered=content["ordered"]),
            **of_questions,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelDamaged(f"{folder.name}/{FILE} of a version is damaged ({error}); {REMEDY}") from error


def find_pictures(client: MlflowClient, experiment_ids: Sequence[str], run_id: str) -> list[tuple[str, str]]:
    """Return where the models of a run show bins in their checks: pairs of image_id and a path in MLflow.

    A bin that is a reference of several questions has a path for each.
    """
    found = []
    for model in client.search_logged_models(list(experiment_ids), f"source_run_id = '{run_id}'"):
        names = {Path(file.path).name for file in client.list_logged_model_artifacts(model.model_id, FOLDER)}
        if FILE not in names:
            continue
        with tempfile.TemporaryDirectory() as folder:
            path = mlflow.artifacts.download_artifacts(
                f"{model.artifact_location}/{FOLDER}/{FILE}", dst_path=folder, tracking_uri=client.tracking_uri
            )
            entries = read_sealed(Path(path))["pictures"]
        place = f"{FOLDER}/{{}} of the model {model.model_id}"
        every = [each for entry in entries for each in (entry, *entry.get("references", ()))]
        found += [(entry["image_id"], place.format(entry["file"])) for entry in every if entry["file"] in names]
    return found


def _as_files(pack: Pack, digests: list[str]) -> tuple[bytes, ...]:
    return tuple(_as_png(picture) for picture in pack.images.take(pack.locate(digests)))


def _as_png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
