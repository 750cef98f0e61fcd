"""Nightly runs on synthetic bins, for the tests of them."""

from pathlib import Path

import servers
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.states import State

from bincount.data import synthetic
from bincount.settings import DataConfig, ImageConfig, PromotionConfig, RegistryConfig, RetrainConfig, TrainConfig
from bincount.tracking import connection
from bincount.workspace import Workspace
from flows.results import NightlyRun
from flows.retrain import retrain

IMAGES = ImageConfig(image_size=32)
TRAINING = TrainConfig(
    model="small", weights="none", epochs=6, learning_rate=3e-3, min_crop=0.8, dropout=0.1, keep="last"
)
SHORT = TRAINING.model_copy(update={"epochs": 1})
RETRAINING = RetrainConfig(min_new_images=10, price_per_hour=3.6)
PROMOTION = PromotionConfig(max_class_loss=100)  # some classes have five images
FORCED = PromotionConfig(force=True)  # for a champion of a short training and few bins


def opened(workspace, config=RegistryConfig()):
    places = Workspace(root=workspace)
    return connection.open_registry(places.tracking_uri(config), places.artifacts, config)


def pages(key: str = "night") -> list[str]:
    """Return the pages that nightly runs have left, or their artifacts of another key, the first one first."""
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])))
    return [artifact.data for artifact in sorted(found, key=lambda artifact: artifact.created)]


class NightlyRuns:
    """Nightly runs on synthetic bins in a folder, to which more can be added."""

    def __init__(self, folder: Path, num_bins: int = 330):
        self.source, self.workspace = folder / "bins", servers.with_database(folder / "workspace")
        self.data = DataConfig(source=str(self.source))
        self.grow_to(num_bins)

    def grow_to(self, num_bins: int) -> None:
        synthetic.generate(self.source, num_bins, size=(64, 64))

    def run(self, night=retrain, **settings) -> State[NightlyRun]:
        settings = {"training": SHORT, "retraining": RETRAINING, "promotion": PROMOTION} | settings
        return night(data=self.data, images=IMAGES, workspace=self.workspace, **settings, return_state=True)
