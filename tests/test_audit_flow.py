"""The flow of an audit, against a real Prefect server and a real MLflow."""

import importlib.util

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from servers import with_database
from test_audit import STUBS

from bincount import auditing, preflight
from bincount.data import folds, synthetic, tables
from bincount.errors import ModelNotFound, SettingsError
from bincount.evaluation import audit_table, change_evidence, earlier
from bincount.settings import AuditConfig, DataConfig, ImageConfig, Job, PromotionConfig, RegistryConfig, TrainConfig
from bincount.tracking import connection
from bincount.tracking.audits import AUDIT_TAG
from bincount.workspace import Workspace
from flows import summary
from flows.audit import audit
from flows.run import run
from flows.train import train

pytestmark = [
    pytest.mark.services,
    pytest.mark.usefixtures("training_here"),
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in STUBS), reason="a part of the audit is not there"
    ),
]

QUICK = TrainConfig(model="small", weights="none", epochs=1, device="cpu")


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bins")
    synthetic.generate(folder, 300, size=(64, 64))
    return {
        "data": DataConfig(source=str(folder)),
        "images": ImageConfig(image_size=32),
        "training": QUICK,
        "workspace": with_database(tmp_path_factory.mktemp("workspace")),
    }


@pytest.fixture(scope="module")
def champion(api, settings):
    return run(**settings, promotion=PromotionConfig(force=True)).model


@pytest.fixture(scope="module")
def by_champion(champion, settings):
    return audit(**settings)


@pytest.fixture(scope="module")
def by_folds(by_champion, settings):
    """All bins, by the networks of two folds of two members, which become a version."""
    training = QUICK.model_copy(update={"members": 2})
    asked = AuditConfig(folds=2, register_folds=True)
    return audit("folds", **settings | {"training": training}, audit=asked, fetch=False)


def registry_of(settings):
    places = Workspace(root=settings["workspace"])
    return connection.open_registry(places.tracking_uri(RegistryConfig()), places.artifacts, RegistryConfig())


def test_without_a_champion_the_error_names_the_folds_too(settings, tmp_path):
    job = Job(**settings | {"workspace": with_database(tmp_path / "empty")})
    with pytest.raises(ModelNotFound, match=r"--folds 4 --scored-by folds` trains its own networks"):
        preflight.check_scorer(job, "champion")


def test_the_champion_scores_what_it_was_not_trained_on(by_champion, champion):
    table, figures = by_champion.audited.table, by_champion.audited.figures
    assert figures.model == f"version {champion.version.version}"
    assert set(table.loc[table["status"] == "trained on", "split"]) <= {"train", "extra"}
    assert set(table.loc[table["split"].isin(["val", "test"]), "status"]) == {"scored"}
    assert figures.num_scored_by_folds == 0


def test_an_audit_is_a_run_in_mlflow_that_is_linked_with_the_version(by_champion, champion, settings):
    registry = registry_of(settings)
    run_id = registry.find(str(champion.version.version)).tags[AUDIT_TAG]
    kept = registry.client.get_run(run_id)
    assert kept.info.status == "FINISHED"
    assert kept.info.run_name.startswith("audit of ")
    assert kept.data.tags["version"] == str(champion.version.version)
    assert kept.data.metrics["audit/num_scored"] == by_champion.audited.figures.num_scored
    names = {file.path for file in registry.client.list_artifacts(run_id)}
    assert {audit_table.TABLE, audit_table.CSV, audit_table.FIGURES, audit_table.PAGE} <= names


def test_the_page_of_the_run_begins_with_the_headline_and_has_the_first_bins(by_champion):
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["audit"])))
    texts = [artifact.data for artifact in found]
    first = by_champion.audited.table.iloc[0]
    assert any(text.startswith("## ") and f"| {first['image_id']} |" in text for text in texts)


def test_the_terminal_shows_the_headline_ten_bins_and_the_files(by_champion):
    tables = summary.of_audit(by_champion)
    assert tables["Result"].iloc[0, 0] == by_champion.audited.headline
    assert len(tables["First to check"]) == 10
    assert str(by_champion.audited.folder) in tables["Audit"]["value"].tolist()


def test_with_folds_every_bin_is_scored_by_networks_that_have_not_seen_it(by_folds, settings):
    table, figures = by_folds.audited.table, by_folds.audited.figures
    assert figures.num_trained_on == 0
    assigned = folds.assign(by_folds.registered.snapshot, 2)
    of_folds = table[table["image_id"].isin(assigned.index) & (table["status"] == "scored")]
    assert (of_folds["scored_by"] == "fold " + of_folds["image_id"].map(assigned).astype(str) + " of 2").all()
    assert set(table.loc[table["split"].isin(["val", "test"]), "scored_by"]) == {"model"}


def test_the_mean_of_the_folds_is_a_version_whose_networks_have_their_curves_below_it(by_folds, settings):
    registry, version = registry_of(settings), by_folds.registered.version
    above = registry.client.get_run(version.run_id)
    assert (above.data.params["members"], above.data.params["folds"]) == ("4", "2")
    below = registry.client.search_runs(
        [registry.experiment_id], f"tags.`mlflow.parentRunId` = '{version.run_id}'", max_results=10
    )
    assert sorted((each.data.params["folds"], each.data.params["seed"]) for each in below) == [
        ("fold 1 of 2", "0"),
        ("fold 1 of 2", "1"),
        ("fold 2 of 2", "0"),
        ("fold 2 of 2", "1"),
    ]
    assert all(registry.client.get_metric_history(each.info.run_id, "val/accuracy") for each in below)
    assert {above.info.status, *(each.info.status for each in below)} == {"FINISHED"}
    assert by_folds.registered.decision.reason


def test_an_audit_that_is_there_trains_and_scores_nothing_again(by_folds, settings):
    before = {path: path.stat().st_mtime_ns for path in by_folds.audited.folder.iterdir()}
    training = QUICK.model_copy(update={"members": 2})
    again = audit("folds", **settings | {"training": training}, audit=AuditConfig(folds=2), fetch=False)
    assert again.audited == by_folds.audited
    assert {path: path.stat().st_mtime_ns for path in by_folds.audited.folder.iterdir()} == before


def test_weights_of_a_model_that_has_seen_the_bins_are_refused_for_folds(champion, settings):
    weights = str(champion.trained.checkpoint / "model.safetensors")
    job = Job(**settings | {"training": QUICK.model_copy(update={"weights": weights})}, audit=AuditConfig(folds=3))
    with pytest.raises(SettingsError, match="has seen the images of all folds"):
        preflight.check_audit(job, "folds")


def test_a_version_that_started_from_another_has_that_one_among_its_ancestors(champion, settings):
    weights = str(champion.trained.checkpoint / "model.safetensors")
    warm = settings | {"training": QUICK.model_copy(update={"weights": weights, "seed": 3})}
    version = run(**warm).model.version
    ancestors = auditing.find_ancestors(registry_of(settings), version)
    assert [each.version for each in ancestors] == [version.version, champion.version.version]


def test_the_champion_among_the_models_of_changes_is_asked_too(champion, settings, monkeypatch):
    monkeypatch.setattr(earlier, "FEWEST_PAIRS", 10)
    monkeypatch.setattr(change_evidence, "FEWEST_PAIRS", 10)
    changes = QUICK.model_copy(update={"task": "change"})
    registered = train(**settings | {"training": changes}, promotion=PromotionConfig(force=True))
    assert registered.version.name == "bincount-change"

    audited = audit(**settings, fetch=False).audited

    kept = next(audited.folder.glob("changes-*.parquet"))
    table = audited.table.set_index("image_id")
    asked = tables.read_frame(kept, "")["after"]
    assert set(table.loc[asked, "split"].dropna()) <= {"val", "test"}
    assert set(asked) <= set(table.index[table["before"].notna()])
    assert len(asked) >= 10
    assert kept.stem.removeprefix("changes-") == audit_table.read_result(audited.folder)["inputs"]["changes"][:12]
