"""Where files lie: the folder that holds everything the pipeline makes."""

import hashlib
import os
import re
from pathlib import Path

from pydantic import field_validator

from bincount import database
from bincount.errors import SettingsError
from bincount.frozen import Frozen
from bincount.settings import DEFAULT_WORKSPACE, DataConfig, ImageConfig, RegistryConfig, TrainConfig


class Workspace(Frozen):
    """The folder that holds everything the pipeline makes."""

    root: Path = DEFAULT_WORKSPACE

    @field_validator("root")
    @classmethod
    def _encodable(cls, root: Path) -> Path:
        try:
            str(root.resolve()).encode()
        except UnicodeEncodeError:  # MLflow would look for its files in another folder
            raise SettingsError(f"the path of the workspace {str(root)!r} is not UTF-8; choose another name") from None
        return root

    def dataset(self, data: DataConfig) -> Path:
        """Return the folder of one source's dataset; limit and classes do not name it, so that the dataset can grow.

        A subset by list is a dataset of its own, so that it has those images and no others; so is one that keeps the
        source's splits.
        """
        is_bucket = data.source.startswith("s3://")
        address = data.source if is_bucket else str(Path(data.source).resolve())
        name = address.removeprefix("s3://") if is_bucket else Path(address).name
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[-40:].strip("-")
        subset = f" {data.only_listed.resolve()}" if data.only_listed else ""
        subset += " with its splits" if data.keep_splits else ""  # an image never changes its split in a dataset
        return self.root / "datasets" / f"{slug or 'source'}-{_digest(f'{data.endpoint} {address}{subset}', 8)}"

    def snapshot(self, digest: str) -> Path | None:
        """Return the folder of the snapshot with this digest, of whatever dataset; None where it is not here."""
        if not digest:
            return None
        found = self.root.glob(f"datasets/*/snapshots/{digest}/snapshot.json")
        return next((path.parent for path in sorted(found)), None)

    def evaluation(self, snapshot_digest: str, model_digest: str) -> Path:
        """Return the folder of one model's evaluation on one snapshot."""
        return self.root / "evaluations" / f"{snapshot_digest[:12]}-{model_digest[:12]}"

    @property
    def audits(self) -> Path:
        """The folder of audits, each in a folder of its own that is named by what was scored and by whom."""
        return self.root / "audits"

    @property
    def tuning(self) -> Path:
        """The folder of searches of settings, each in a folder of its own."""
        return self.root / "tuning"

    @property
    def search_lock(self) -> Path:
        """The lock that a search holds while it is at work."""
        return self.tuning / ".lock"

    def weights(self, digest: str) -> Path:
        """Return the path of a file of weights that trainings start from, named by the digest of its content."""
        return self.root / "weights" / f"{digest[:16]}.safetensors"

    def run(
        self, snapshot_digest: str, images: ImageConfig, training: TrainConfig, *, decoder: int = 0, subset: str = ""
    ) -> Path:
        """Return the folder of one training: named by its inputs, so that a retry lands in the same place and resumes.

        Where training says auto, put in its place first what that stands for on this machine (training.device.resolve):
        another machine may train otherwise, and then in another folder. A file of weights is one by its content too,
        which may be another tomorrow under the same name; so are the pixels of a photo, which follow from the decoder
        (data.pictures.DECODER_VERSION). subset names the images that are trained on, where it is not all of them.
        """
        # As releases named folders that knew no other task, and no frozen backbone.
        unused = {"task"} if training.task == "counting" else set()
        unused |= set() if training.freeze_backbone else {"freeze_backbone"}
        settings = training.model_dump_json(exclude_none=True, exclude=unused)
        inputs = f"{images.model_dump_json()}{settings}{decoder}{subset}"
        for weights in dict.fromkeys(member.weights for member in training.each_member()):
            if os.path.isfile(weights):
                with open(weights, "rb") as file:
                    inputs += hashlib.file_digest(file, "sha256").hexdigest()
        return self.root / "runs" / f"{snapshot_digest[:12]}-{_digest(inputs, 12)}"

    def tracking_uri(self, registry: RegistryConfig) -> str:
        """Return the MLflow URI in use: the configured one, that of the environment, or SQLite beside the datasets.

        It may hold a password; errors.mask_credentials makes it fit to be shown.
        """
        return registry.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or self.own_tracking_uri

    @property
    def own_tracking_uri(self) -> str:
        """The SQLite file beside the datasets, as MLflow takes it."""
        return database.sqlite_uri((self.root / "mlflow.db").resolve())

    @property
    def report(self) -> Path:
        """The page over months that nightly runs write anew."""
        return self.root / "report.html"

    def report_of(self, registry: RegistryConfig) -> Path:
        """Return the path of the page over months of a registered model; those of questions have their own."""
        return self.root / f"report-{registry.model_name}.html" if registry.answers else self.report

    @property
    def artifacts(self) -> Path:
        """The folder where MLflow keeps files when it runs on the workspace's own SQLite."""
        return self.root / "mlflow-artifacts"


def _digest(text: str, length: int) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:length]
