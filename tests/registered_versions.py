"""Versions of a small trained model in a registry, for the tests of what becomes of them."""

from pathlib import Path

from bins import jpeg
from servers import with_database
from synthetic_training import IMAGES, QUICK, dataset

from bincount import lifecycle
from bincount.evaluation.evaluate import evaluate
from bincount.lifecycle import Promotion
from bincount.settings import Job, PromotionConfig, RegistryConfig
from bincount.tracking import connection
from bincount.tracking.registry import Version
from bincount.tracking.self_check import SelfCheck
from bincount.training.loop import fit
from bincount.training.run_folder import Request
from bincount.workspace import Workspace


class Trained:
    """A workspace in a folder with a dataset, and a model that was trained on it and evaluated."""

    def __init__(self, root: Path):
        self.root = with_database(root)
        self.snapshot, pack = dataset(root / "datasets" / "drawn", train=96, val=24, test=90)
        settings = QUICK.model_copy(update={"epochs": 8})
        self.checkpoint = fit(Request(self.snapshot, pack, IMAGES, settings, root / "runs" / "good")).checkpoint
        evaluation = evaluate(self.snapshot, pack, self.checkpoint, root / "evaluation", "cpu")
        self.check = SelfCheck.choose(self.snapshot, pack, evaluation.predictions)


class Versions:
    """A registered model of this name, all whose versions are the same trained model."""

    def __init__(self, trained: Trained, name: str):
        self.snapshot, self.checkpoint, self.check = trained.snapshot, trained.checkpoint, trained.check
        self.workspace = Workspace(root=trained.root)
        name = "".join(letter if letter.isalnum() else "-" for letter in name[:80])
        self.config = RegistryConfig(model_name=name)
        self.opened = connection.open_registry(
            self.workspace.tracking_uri(self.config), self.workspace.artifacts, self.config
        )

    def register(self, name: str = "one", *, with_check: bool = True) -> Version:
        tags = {"snapshot": self.snapshot.digest, "source": self.snapshot.source, "classes": "0,1,2"}
        run = self.opened.runs.start(f"{self.config.model_name} {name}", {**IMAGES.model_dump()}, {})
        check = self.check if with_check else None
        return self.opened.register(run, self.checkpoint, "# Card\n\n## Data\n", tags, jpeg(), check=check)

    def package(self, version: Version) -> Path:
        """The folder that MLflow keeps the files of a version in."""
        client = self.opened.client
        return Path(client.get_model_version_download_uri(version.name, str(version.version)).removeprefix("file://"))

    def job(self, **promotion) -> Job:
        return Job(registry=self.config, workspace=self.workspace.root, promotion=PromotionConfig(**promotion))

    def promote(self, version: Version, flow_run: str = "", **promotion) -> Promotion:
        job = self.job(**promotion)
        return lifecycle.promote(self.opened, version, self.snapshot, job, by="test", device="cpu", flow_run=flow_run)
