"""Whole searches, against a real Prefect server: killed and resumed, with failures, with a limit, and on a pool."""

import json
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE
from prefect.client.orchestration import get_client
from servers import program, running, wait_for, with_database

from bincount import settings_file
from bincount.data import synthetic
from bincount.errors import SettingsError, TrainingDiverged
from bincount.settings import DataConfig, ImageConfig, PromotionConfig, RegistryConfig, TrainConfig, TuneConfig
from bincount.text import escape_markdown
from bincount.tracking import connection
from bincount.tracking.runs import SEARCH_TAG
from bincount.training.run_folder import Request, Trained
from bincount.tuning import pages, winner
from bincount.tuning.budget import Clock
from bincount.workspace import Workspace
from flows.prepare import prepare
from flows.results import SearchResult
from flows.tune import tune
from tasks import training as training_tasks

pytestmark = pytest.mark.services

IMAGES = ImageConfig(image_size=32)
GIVEN = TrainConfig(model="small", weights="none", epochs=1, device="cpu", keep="last")
SPACE = """
[training]
learning_rate = {low = 1e-4, high = 1e-1, log = true}
batch_size = [32, 64]
"""


class Killed(BaseException):
    """The process was killed."""


@pytest.fixture(scope="module")
def bins(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bins")
    synthetic.generate(folder, 300, size=(64, 64))
    return folder


@pytest.fixture(scope="module")
def space(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("space") / "space.toml"
    path.write_text(SPACE)
    return path


@pytest.fixture
def search(api, bins, space, tmp_path):
    """Search in a workspace of its own; options are those of the flow and of TuneConfig."""
    workspace = with_database(tmp_path / "workspace")

    def search(register_winner: bool = False, root: Path = workspace, **tuning) -> SearchResult:
        tuning = {"space": space, "trials": 4, "startup_trials": 2, "seeds_per_trial": 1, "pruner": "none"} | tuning
        return tune(
            data=DataConfig(source=str(bins)),
            images=IMAGES,
            training=GIVEN,
            tuning=TuneConfig(**tuning),
            promotion=PromotionConfig(force=True),
            workspace=root,
            register_winner=register_winner,
        )

    search.workspace = workspace
    return search


@pytest.fixture
def before_training(training_here, monkeypatch):
    """Call something with the request of each training before it starts."""

    def before(act) -> None:
        train = training_tasks.train_in_subprocess

        def acting(request: Request, *arguments, **options) -> Trained:
            act(request)
            return train(request, *arguments, **options)

        monkeypatch.setattr(training_tasks, "train_in_subprocess", acting)

    return before


def opened(workspace: Path):
    places = Workspace(root=workspace)
    return connection.open_registry(places.tracking_uri(RegistryConfig()), places.artifacts, RegistryConfig())


def runs_below(workspace: Path, run_id: str) -> dict[str, object]:
    runs = opened(workspace).runs
    found = runs.client.search_runs([runs.experiment_id], f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{run_id}'")
    return {run.data.tags["trial"]: run for run in found}


def test_twelve_trials_killed_after_five_and_resumed_are_those_of_the_unbroken_search(
    search, before_training, tmp_path
):
    unbroken = search(trials=12, startup_trials=4, root=with_database(tmp_path / "unbroken"))
    trained = []

    def kill(request: Request) -> None:
        trained.append(request.folder)
        if len(trained) == 6:
            raise Killed

    before_training(kill)
    with pytest.raises(Killed):
        search(trials=12, startup_trials=4)
    resumed = search(trials=12, startup_trials=4)

    tables = [result.search.table().drop(columns="seconds") for result in (unbroken, resumed)]
    assert tables[0].equals(tables[1])
    assert list(tables[0]["state"]) == ["complete"] * 12
    assert len(trained) == 13  # one twice, since it was killed; those of the finalists are found finished
    assert resumed.findings == unbroken.findings


def test_a_search_leaves_its_winner_its_page_and_its_runs_where_people_look(search, training_here):
    result = search(register_winner=True, seeds_per_trial=2)
    workspace = search.workspace

    best = settings_file.read(result.search.folder / winner.NAME)
    assert best.training.learning_rate == result.findings.winner.values["training.learning_rate"]
    assert best.training.precision == "auto"  # for whichever machine reads it
    assert result.page.read_text().startswith("<!doctype html>")
    runs = opened(workspace).runs
    parent = runs.client.get_run(runs.find(result.search.study_name))
    assert parent.info.status == "FINISHED"
    assert parent.data.tags[SEARCH_TAG] == result.search.study_name
    assert parent.data.tags["winner"] == str(result.findings.winner.number)
    assert parent.data.tags[MLFLOW_RUN_NOTE].startswith(escape_markdown(result.findings.headline()))
    kept = {file.path for file in runs.client.list_artifacts(parent.info.run_id)}
    pictures = {f"{name}.png" for name in pages.pictures(result.search, result.findings)}
    assert kept == {"best.toml", "finalists.json", "search.html", "trials.json", "images"} | pictures
    with get_client(sync_client=True) as client:
        assert {"search", "search-trials"} <= {artifact.key for artifact in client.read_artifacts()}
    assert {run.info.status for run in runs_below(workspace, parent.info.run_id).values()} == {"FINISHED"}
    assert runs_below(workspace, parent.info.run_id).keys() == {"0", "1", "2", "3"}
    version = result.registered.version
    assert version.alias == "champion"
    assert runs.read_params(version.run_id)["learning_rate"] == str(best.training.learning_rate)


def test_a_trial_that_diverges_fails_alone_in_mlflow_too_and_more_trials_extend_the_search(search, before_training):
    seen = []

    def diverge(request: Request) -> None:
        seen.append(request.folder)
        if len(seen) == 2:
            raise TrainingDiverged("the loss was no number")

    before_training(diverge)
    result = search(trials=3)
    assert list(result.search.table()["state"]) == ["complete", "failed", "complete"]
    runs = opened(search.workspace).runs
    run_id = runs.find(result.search.study_name)
    assert runs.client.get_run(run_id).info.status == "FINISHED"
    assert {trial: run.info.status for trial, run in runs_below(search.workspace, run_id).items()}["1"] == "FAILED"

    longer = search(trials=5)
    assert longer.search.name == result.search.name
    assert list(longer.search.table()["state"]) == ["complete", "failed", "complete", "complete", "complete"]
    assert opened(search.workspace).runs.find(longer.search.study_name) == run_id


def test_a_search_that_runs_out_of_time_names_the_best_so_far_and_says_so(search, before_training, monkeypatch):
    began = []
    before_training(lambda request: began.append(request.folder))
    monkeypatch.setattr(Clock, "seconds", property(lambda clock: 7200.0 if len(began) > 1 else 1.0))
    result = search(trials=50, hours=1)
    assert len(result.search.table()) == 2
    assert result.spent == "2.0 h of 1 h; the time was over; with more --hours the same command goes on"
    runs = opened(search.workspace).runs
    assert runs.client.get_run(runs.find(result.search.study_name)).info.status == "FINISHED"


def test_a_search_on_a_pool_that_is_not_there_says_how_to_make_one(search):
    with pytest.raises(SettingsError, match=r"there is no work pool nowhere .*prefect work-pool create"):
        search(on_pool="nowhere")


def test_two_workers_of_a_pool_share_a_search_and_a_killed_search_finds_their_runs(api, bins, space, tmp_path):
    root = with_database(tmp_path / "workspace")
    environment = os.environ | {"PREFECT_API_URL": api, "PREFECT_LOGGING_EXTRA_LOGGERS": "bincount"}
    prepare(data=DataConfig(source=str(bins)), images=IMAGES, workspace=root)
    subprocess.run(
        [program("prefect"), "work-pool", "create", "--type", "process", "tuners"], env=environment, check=True
    )
    command = [sys.executable, "-m", "flows.cli", "tune", "--source", str(bins), "--no-fetch", "--workspace", str(root)]
    command += ["--image-size", "32", "--model", "small", "--weights", "none", "--epochs", "1", "--keep", "last"]
    command += ["--space", str(space), "--trials", "4", "--parallel", "2", "--seeds-per-trial", "1", "--pruner", "none"]
    command += ["--on-pool", "tuners"]
    with ExitStack() as workers:
        for name in ("one", "two"):
            worker = [program("prefect"), "worker", "start", "--pool", "tuners", "--limit", "1", "--name", name]
            workers.enter_context(running(worker, environment, tmp_path / f"{name}.log", lambda: True))
        first = subprocess.Popen(command, env=environment)
        wait_for(lambda: len(list(root.glob("tuning/*/trials/*.json"))) == 2, 300)
        first.send_signal(signal.SIGKILL)
        first.wait()
        subprocess.run(command, env=environment, check=True)

    with get_client(sync_client=True) as client:
        runs = [run for run in client.read_flow_runs() if run.name.startswith("trial ")]
    assert len(runs) == 4  # none was started twice
    assert {run.state.type.value for run in runs} == {"COMPLETED"}
    taken = [(tmp_path / f"{name}.log").read_text().count("submitted to infrastructure") for name in ("one", "two")]
    assert min(taken) >= 1, taken
    [clock] = root.glob("tuning/*/clock.json")
    assert len(json.loads(clock.read_text())["trainings"]) == 4  # the time of machines is counted a run
    assert list(root.glob("tuning/*/best.toml"))
