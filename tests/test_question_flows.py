"""Models that answer questions, from end to end against a real Prefect server: trained, compared, promoted, nightly."""

import pandas as pd
import pytest
from nightly_runs import opened, pages
from servers import with_database

from bincount.data import synthetic
from bincount.errors import SettingsError
from bincount.evaluation.evaluate import RULES
from bincount.reporting.tables import markdown_table
from bincount.settings import DataConfig, ImageConfig, PromotionConfig, RegistryConfig, RetrainConfig, TrainConfig
from bincount.tracking import self_check
from bincount.workspace import Workspace
from flows import summary
from flows.cli import app
from flows.evaluate import evaluate
from flows.prepare import prepare
from flows.promote import compare
from flows.retrain import retrain
from flows.run import run
from flows.train import train

pytestmark = [pytest.mark.services, pytest.mark.usefixtures("this_training_here")]

IMAGES = ImageConfig(image_size=32)
TRAINING = TrainConfig(task="object", model="small", weights="none", epochs=1, batch_size=32)
OBJECTS = RegistryConfig().of_task("object")


class Bins:
    """Bins that share products, in a folder to which more can be added, and a workspace."""

    def __init__(self, folder):
        self.source, self.workspace = folder / "bins", with_database(folder / "workspace")
        self.data = DataConfig(source=str(self.source))
        self.grow_to(128)

    def grow_to(self, num_bins):
        synthetic.generate(self.source, num_bins, size=(64, 64), num_products=20)

    def train(self, **settings):
        return train(
            **{"data": self.data, "images": IMAGES, "training": TRAINING, "workspace": self.workspace} | settings
        )


@pytest.fixture(scope="module")
def bins(api, tmp_path_factory):
    bins = Bins(tmp_path_factory.mktemp("questions"))
    prepare(data=bins.data, images=IMAGES, workspace=bins.workspace)
    return bins


def test_a_model_of_questions_is_a_version_under_its_own_name_and_is_compared_and_promoted(bins, capsys):
    first = bins.train(promotion=PromotionConfig(force=True))
    second = bins.train(training=TRAINING.model_copy(update={"seed": 1}))

    assert (first.version.name, first.version.version, first.version.alias) == ("bincount-object", 1, "champion")
    assert (second.version.version, second.version.alias, second.version.task) == (2, "challenger", "object")
    assert not second.decision.promote
    assert "neither was trained on" in second.decision.reason or second.decision.gains
    shown = "".join(map(markdown_table, summary.of_train(second).values()))
    assert "the commonest answer" in shown
    assert (second.evaluation.folder / RULES).exists()
    registry = opened(bins.workspace, OBJECTS)
    metrics = registry.client.get_run(second.version.run_id).data.metrics
    assert metrics["test/rule_the_commonest_answer_accuracy"] == 0.5
    assert "Beside rules that see no picture" in registry.card(second.version)

    check = self_check.read(registry, second.version)
    assert len(check.references) == len(check.pictures) == len(check.asked)

    again = evaluate("challenger", data=bins.data, registry=OBJECTS, workspace=bins.workspace)
    assert again.metrics == second.evaluation.metrics
    assert again.asked == second.evaluation.asked
    decision = compare("1", "2", data=bins.data, registry=OBJECTS, workspace=bins.workspace)
    assert decision.reason == second.decision.reason

    app(["models", "--model-name", "bincount-object", "--workspace", str(bins.workspace)], result_action="return_value")
    listed = capsys.readouterr().out
    assert "champion" in listed
    assert "challenger" in listed


def test_a_model_of_changes_predicts_how_counts_change_and_starts_as_packaged(bins):
    model = bins.train(training=TRAINING.model_copy(update={"task": "change"}), promotion=PromotionConfig(force=True))

    assert (model.version.name, model.version.alias) == ("bincount-change", "champion")  # it has started
    assert model.evaluation.metrics.rmse_of_expectation is not None


def test_a_nightly_run_counts_the_pictures_of_new_questions(bins):
    night = {"data": bins.data, "images": IMAGES, "training": TRAINING, "workspace": bins.workspace}
    skipped = retrain(**night, retraining=RetrainConfig(min_new_images=10), return_state=True)
    assert skipped.name == "Skipped"
    assert skipped.result().new_data.num_new == 0

    before = skipped.result().new_data.champion.version
    bins.grow_to(192)
    grown = retrain(**night, retraining=RetrainConfig(min_new_images=10)).model
    assert grown.version.name == "bincount-object"
    assert grown.version.alias in ("champion", "challenger")
    assert before == 1
    assert (bins.workspace / "report-bincount-object.html").exists()
    assert not Workspace(root=bins.workspace).report.exists()
    page = pages()[-1]
    assert "Beside rules that see no picture" in page
    assert "Worst mistakes" in page
    assert pd.read_parquet(grown.evaluation.folder / "predictions.parquet")["image_id"].str.contains(" ").all()


@pytest.mark.parametrize("flow", [run, retrain])
def test_a_bucket_without_records_is_refused_before_anything_is_fetched_from_it(api, bucket, tmp_path, flow):
    synthetic.generate_boxes(tmp_path / "boxes", 30, size=(32, 32), broken=False)
    data, workspace = bucket(tmp_path / "boxes"), with_database(tmp_path / "workspace")
    with pytest.raises(SettingsError, match="has classes in folders; leave out --task"):
        flow(data=data, images=IMAGES, training=TRAINING, workspace=workspace)
    assert not list(workspace.glob("datasets/*/originals"))
