"""Challenger against champion through whole flows and commands, against a real Prefect server and MLflow's SQLite."""

import json
import re
import shutil
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from servers import with_database

from bincount import lifecycle
from bincount.data import synthetic
from bincount.errors import ServiceUnavailable, SettingsError
from bincount.evaluation import promotion
from bincount.settings import DataConfig, ImageConfig, Job, PromotionConfig, RegistryConfig, RetrainConfig, TrainConfig
from bincount.tracking import client, connection, registry
from bincount.workspace import Workspace
from flows.cli import app
from flows.evaluate import evaluate
from flows.promote import compare, promote
from flows.run import run
from flows.train import train
from tasks import evaluation as evaluation_tasks
from tasks import promotion as promotion_tasks

pytestmark = [pytest.mark.services, pytest.mark.usefixtures("training_here")]

IMAGES = ImageConfig(image_size=32)
WEAK = TrainConfig(model="small", weights="none", epochs=1, learning_rate=1e-4)
ANY_CLASS_MAY_LOSE = PromotionConfig(max_class_loss=100)  # in a test of ten images a class
STRONG = TrainConfig(model="small", weights="none", epochs=12, learning_rate=3e-3, min_crop=0.8)


@pytest.fixture(scope="module", autouse=True)
def few_bins_are_enough():
    """The tests' drawn source has less test bins than a decision should rest on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(promotion, "FEWEST_BINS", 10)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bins")
    synthetic.generate(folder, 600, size=(64, 64))
    return DataConfig(source=str(folder))


@pytest.fixture(scope="module")
def nights(api, data, tmp_path_factory):
    """A weak model that was forced to be champion for want of another, a strong one; and the workspace of both."""
    workspace = with_database(tmp_path_factory.mktemp("workspace"))
    return (
        run(data=data, images=IMAGES, training=WEAK, workspace=workspace, promotion=PromotionConfig(force=True)),
        run(data=data, images=IMAGES, training=STRONG, workspace=workspace, promotion=ANY_CLASS_MAY_LOSE),
        workspace,
    )


def opened(workspace):
    return connection.open_existing(Workspace(root=workspace), RegistryConfig())


def command(*words):
    app([str(word) for word in words], result_action="return_value")


def test_a_weak_first_model_is_champion_by_force_alone_and_a_better_one_takes_its_place(nights):
    first, second, workspace = nights
    assert first.model.version.version == 1
    assert first.model.decision.reason.startswith("forced, though accuracy is not significantly better than always")
    assert second.model.decision.promote
    assert second.model.decision.gains[0].interval.low > 0
    assert (second.model.version.version, second.model.version.alias) == (2, "champion")
    moves = opened(workspace).history()
    assert [(move.version, move.over) for move in moves] == [(1, 0), (2, 1)]
    assert "flow run train small" in moves[1].by


def test_the_card_and_the_pages_say_how_it_compares(nights):
    _, second, workspace = nights
    reg = opened(workspace)
    description = reg.client.get_model_version("bincount", "2").description
    comparison, test, rest = description.partition("## Test")
    assert comparison.startswith("## Against the champion\n\n**Promote: accuracy is significantly better")
    card = reg.card(second.model.version)
    assert "Against the champion" not in card
    headings = re.findall(r"^## .+$", test + rest, re.MULTILINE)
    assert headings
    assert headings == re.findall(r"^## .+$", card, re.MULTILINE)[: len(headings)]
    assert reg.find("2").tags["bincount.decision"].startswith("Promote: ")
    assert {"git_commit", "bincount_version", "snapshot", "flow_run", "test_accuracy"} <= set(reg.find("2").tags)
    with get_client(sync_client=True) as client:
        keys = {artifact.key for artifact in client.read_artifacts()}
    assert {"test-scores", "test-metrics", "confusion", "slices", "suspects", "promotion"} <= keys
    files = {file.path for file in reg.client.list_artifacts(second.model.version.run_id)}
    assert {
        "reliability.png",
        "worst_mistakes.png",
        "slices.json",
        "test.html",
        "mistakes.json",
        "suspects.json",
    } <= files


def test_the_page_of_a_test_says_what_was_decided_and_what_the_champion_predicted(nights, tmp_path):
    _, second, workspace = nights
    reg, version = opened(workspace), second.model.version
    kept = Path(reg.client.download_artifacts(version.run_id, "test.html", tmp_path)).read_text(encoding="utf-8")

    assert kept == (second.model.evaluation.folder / "test.html").read_text(encoding="utf-8")
    assert "Promote: accuracy is significantly better" in kept
    data = json.loads(kept.partition('id="data">')[2].partition("</script>")[0])
    assert data["champion"]["name"] == "version 1"
    assert len(data["champion"]["predicted"]) == len(data["ids"]) == second.model.evaluation.metrics.num_images
    assert set(data["champion"]["predicted"]) <= {-1, 0, 1, 2, 3, 4, 5}
    assert len(data["pictures"]) == len(data["ids"])


def test_a_comparison_the_other_way_round_promotes_nothing(nights, data, capsys):
    _, _, workspace = nights
    decision = compare("2", "1", data=data, workspace=workspace)
    assert not decision.promote
    assert "significantly worse" in decision.reason
    command("compare", "1", "2", "--source", data.source, "--workspace", workspace, "--max-class-loss", 100)
    printed = capsys.readouterr().out
    assert "Version 2 would take the place of version 1 as champion: accuracy is significantly better" in printed
    assert "learning_rate" in printed
    assert opened(workspace).find_champion().version == 2


@pytest.mark.parametrize("flow", ["promote", "compare", "evaluate"])
def test_an_mlflow_that_is_away_is_waited_for(nights, data, monkeypatch, flow):
    tries, check = [], client._check

    def fail_twice(*arguments, **options):
        tries.append(arguments)
        if len(tries) <= 2:
            raise ServiceUnavailable("MLflow does not answer")
        check(*arguments, **options)

    monkeypatch.setattr(client, "_check", fail_twice)
    for task in (promotion_tasks.find_version, promotion_tasks.compare_models, evaluation_tasks.fetch_model):
        monkeypatch.setattr(task, "retry_delay_seconds", [0, 0, 0, 0])
    workspace = nights[2]

    if flow == "promote":
        assert promote("2", data=data, workspace=workspace).is_champion
    elif flow == "compare":
        assert compare("1", "2", data=data, workspace=workspace).gains
    else:
        assert evaluate("champion", data=data, workspace=workspace).metrics.num_images
    assert len(tries) > 2


def test_a_rollback_holds_until_someone_forces_the_model_back(nights, data, capsys):
    _, _, workspace = nights
    command("rollback", "--reason", "counts tape", "--workspace", workspace)
    assert "counts tape" in capsys.readouterr().out
    assert opened(workspace).find_champion().version == 1

    again = run(data=data, images=IMAGES, training=STRONG, workspace=workspace)  # as the next night does it
    assert again.model.version.version == 2
    assert again.model.decision.reason.startswith("it was rolled back")
    assert opened(workspace).find_champion().version == 1
    nothing_is_enough = RetrainConfig().model_copy(update={"min_new_images": 0})
    job = Job(images=IMAGES, training=STRONG, retraining=nothing_is_enough, workspace=workspace)
    new_data = lifecycle.find_new_data(opened(workspace), again.prepared.snapshot, job)
    assert "version 2 was trained on these images already. It was rolled back" in new_data.skip_reason

    forced = promote("2", data=data, promotion=PromotionConfig(force=True), workspace=workspace)
    assert forced.reason.startswith("forced, though it was rolled back")
    command("models", "--workspace", workspace)
    printed = capsys.readouterr().out
    assert "rolled back 1" in printed
    assert opened(workspace).find_champion().version == 2


def test_models_that_cannot_be_compared_fairly_are_not_promoted(nights, data, tmp_path):
    _, second, workspace = nights
    other = DataConfig(source=data.source, classes="1..4")
    fewer_classes = run(data=other, images=IMAGES, training=WEAK, workspace=workspace)
    assert fewer_classes.model.decision.reason == "version 2 predicts other classes than the snapshot has"
    assert fewer_classes.model.version.alias == "challenger"
    same_night_again = run(data=other, images=IMAGES, training=WEAK, workspace=workspace)
    assert same_night_again.model.decision == fewer_classes.model.decision
    meanwhile = train(
        data=data, images=IMAGES, training=WEAK, workspace=workspace, snapshot=second.prepared.snapshot.digest
    )
    assert "accuracy" in meanwhile.decision.reason  # on its own snapshot, though the last one has other classes

    elsewhere = tmp_path / "elsewhere"  # where the snapshot that the champion was trained on is not
    shutil.copytree(workspace, elsewhere)
    shutil.rmtree(next(elsewhere.glob(f"datasets/*/snapshots/{second.prepared.snapshot.digest}")))
    config = RegistryConfig(tracking_uri=f"sqlite:///{workspace}/mlflow.db")
    decision = promote("3", data=other, registry=config, workspace=elsewhere)
    assert decision.reason.startswith("the images that version 2 was trained on are not in the workspace")


def test_a_promotion_that_is_overtaken_compares_again_with_the_new_champion(nights, data, monkeypatch):
    _, _, workspace = nights
    reg = opened(workspace)
    command("rollback", "--workspace", workspace)
    assert reg.find_champion().version == 1
    compared, compare_two = [], lifecycle.compare

    def compare_while_another_is_promoted(opened, version, champion, *rest, **options):
        compared.append(champion.version)
        if len(compared) == 1:
            opened.promote(opened.find("3"), champion, by="another", reason="quicker")
        return compare_two(opened, version, champion, *rest, **options)

    monkeypatch.setattr(lifecycle, "compare", compare_while_another_is_promoted)
    monkeypatch.setattr(registry.Registry, "find_rollback", lambda self, version: None)
    promote("2", data=data, promotion=PromotionConfig(force=True), workspace=workspace)

    assert compared == [1, 3]
    assert [(move.version, move.over) for move in reg.history()[-2:]] == [(3, 1), (2, 3)]
    assert (
        reg.find("2").tags["bincount.decision"].startswith("Promote: forced, though version 2 predicts other classes")
    )


def test_where_the_champion_was_removed_nothing_takes_its_place_unless_forced(nights, data):
    _, _, workspace = nights
    reg = opened(workspace)
    reg.client.delete_registered_model_alias("bincount", "champion")

    assert promote("3", data=data, workspace=workspace).reason.startswith("the champion was removed in MLflow")
    assert reg.find_champion() is None
    assert promote("2", data=data, promotion=PromotionConfig(force=True), workspace=workspace).promote
    assert reg.find_champion().version == 2


def test_a_champion_that_is_trained_again_stays_and_its_card_too(nights, data):
    _, _, workspace = nights
    reg = opened(workspace)
    before = reg.client.get_model_version("bincount", "2").description

    again = run(data=data, images=IMAGES, training=STRONG, workspace=workspace)

    assert again.model.decision.describe().startswith("Champion already: promoted at")
    assert reg.client.get_model_version("bincount", "2").description == before
    assert reg.find_champion().version == 2


def test_a_metric_that_means_nothing_is_refused_before_the_training(nights, data, tmp_path):
    with pytest.raises(SettingsError, match="--metric rmse needs classes with an order"):
        run(
            data=data.model_copy(update={"ordered": False}),
            images=IMAGES,
            training=WEAK,
            workspace=tmp_path,
            promotion=PromotionConfig(metric="rmse"),
        )
    assert not list(tmp_path.glob("runs/*/trained.json"))
