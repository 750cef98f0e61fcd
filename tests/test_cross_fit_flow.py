"""Training with cross-fitted scores, against a real Prefect server and a real MLflow."""

from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from servers import with_database

from bincount.data import synthetic
from bincount.settings import (
    AuditConfig,
    DataConfig,
    EvaluationConfig,
    ImageConfig,
    PromotionConfig,
    RegistryConfig,
    TrainConfig,
)
from bincount.tracking import connection
from bincount.workspace import Workspace
from flows import pages, summary
from flows.audit import audit
from flows.run import run
from flows.train import train
from tasks import training as training_tasks

pytestmark = [pytest.mark.services, pytest.mark.usefixtures("training_here")]

QUICK = TrainConfig(model="small", weights="none", epochs=1, device="cpu")
TWO_FOLDS = EvaluationConfig(cross_fit=2)


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bins")
    synthetic.generate(folder, 300, size=(64, 64))
    return {
        "data": DataConfig(source=str(folder)),
        "images": ImageConfig(image_size=32),
        "training": QUICK,
        "promotion": PromotionConfig(force=True),
        "workspace": with_database(tmp_path_factory.mktemp("workspace")),
    }


@pytest.fixture(scope="module")
def killed(api, settings):
    """When each training was done that a run had finished before it was ended."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_tasks, "average_folds", lambda *words: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(**settings, evaluation=TWO_FOLDS)
    return trainings(settings)


@pytest.fixture(scope="module")
def finished(killed, settings):
    return run(**settings, evaluation=TWO_FOLDS)


def trainings(settings) -> dict[str, int]:
    """When each training was finished, by its folder."""
    return {
        path.parent.name: path.stat().st_mtime_ns for path in Path(settings["workspace"]).glob("runs/*/trained.json")
    }


def registry_of(settings):
    places = Workspace(root=settings["workspace"])
    return connection.open_registry(places.tracking_uri(RegistryConfig()), places.artifacts, RegistryConfig())


def test_a_run_that_was_ended_goes_on_and_trains_no_fold_twice(killed, finished, settings):
    assert len(killed) == 3  # the model's network, and those of two folds
    after = trainings(settings)
    assert killed.items() <= after.items()
    assert len(after) == 4  # and the mean of the folds


def test_every_labelled_image_is_scored_and_the_model_is_that_of_all_of_train(finished):
    model = finished.model
    scored, snapshot = model.cross_fitted, model.snapshot
    assert scored.every.num_images == snapshot.num_images
    assert scored.train.num_images == (snapshot.labelled()["split"] == "train").sum()
    assert scored.test.scores["accuracy"].value == model.evaluation.metrics.accuracy
    assert not model.trained.members


def test_the_scores_are_metrics_and_tags_of_the_version_and_stand_on_its_card(finished, settings):
    registry, model = registry_of(settings), finished.model
    kept = registry.client.get_run(model.version.run_id)
    accuracy = model.cross_fitted.every.scores["accuracy"]
    assert kept.data.metrics["crossfit/accuracy"] == accuracy.value
    assert kept.data.metrics["crossfit/accuracy_low"] == accuracy.low
    version = registry.find(str(model.version.version))
    assert version.tags["crossfit_accuracy"] == accuracy.describe()
    assert "## Cross-fitted, " in registry.card(version)


def test_the_runs_of_the_folds_have_ended_below_that_of_their_mean(finished, settings):
    registry = registry_of(settings)
    runs = registry.client.search_runs([registry.experiment_id], max_results=20)
    of_folds = [each for each in runs if each.data.params.get("folds")]
    assert sorted(each.data.params["folds"] for each in of_folds) == ["2", "fold 1 of 2", "fold 2 of 2"]
    assert {each.info.status for each in of_folds} == {"FINISHED"}


def test_the_page_of_the_run_and_the_terminal_show_them_beside_the_test(finished):
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["summary"])))
    assert "## Cross-fitted, " in found[-1].data
    assert "may be lucky or unlucky" in "".join(pages.of_run(finished.prepared, finished.model).values())
    tables = summary.of_train(finished.model)
    [title] = [title for title in tables if title.startswith("Cross-fitted, ")]
    assert tables[title].iloc[0, 0] == "accuracy"
    assert any("may be lucky" in frame.iloc[0, 0] for frame in tables.values() if list(frame.columns) == [""])


def test_an_audit_by_as_many_folds_trains_none_again(finished, settings):
    before = trainings(settings)
    audit("folds", **settings, audit=AuditConfig(folds=2), fetch=False)
    assert trainings(settings) == before


def test_the_mean_of_the_folds_becomes_the_version_on_request(finished, settings):
    before = trainings(settings)

    model = train(**settings, evaluation=EvaluationConfig(cross_fit=2, register_cross_fit=True))

    assert trainings(settings) == before
    assert len(model.trained.members) == 2
    assert model.cross_fitted.every == finished.model.cross_fitted.every
    kept = registry_of(settings).client.get_run(model.version.run_id)
    assert (kept.data.params["members"], kept.data.params["folds"]) == ("2", "2")
