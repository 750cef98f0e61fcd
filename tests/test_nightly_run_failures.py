"""Nights that something breaks: how they end, what their page says, and what the next one does."""

import shutil
import subprocess
from contextlib import ExitStack

import pytest
import servers
from faulty_s3 import FaultyS3, refused
from nightly_runs import FORCED, IMAGES, RETRAINING, SHORT, NightlyRuns, opened, pages
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Crashed

from bincount import report, retention
from bincount.data import snapshots, synthetic
from bincount.errors import SourceError
from bincount.reporting import records
from bincount.settings import DataConfig, RegistryConfig
from bincount.tracking import registry
from bincount.training.launch import train_in_subprocess
from bincount.training.run_folder import Trained
from bincount.workspace import Workspace
from flows import summary
from flows.retrain import retrain
from tasks import promotion as promotion_tasks
from tasks import training as training_tasks

pytestmark = [pytest.mark.services, pytest.mark.usefixtures("training_here")]


@pytest.fixture
def nights(api, tmp_path) -> NightlyRuns:
    return NightlyRuns(tmp_path)


def test_a_nightly_run_that_fails_leaves_a_page_too(api, tmp_path):
    data = DataConfig(source=str(tmp_path / "nowhere"))
    with pytest.raises(SourceError):
        retrain(data=data, images=IMAGES, training=SHORT, workspace=tmp_path / "workspace")
    assert "nowhere" in pages()[-1]
    assert "What was done is kept" in pages()[-1]


def test_a_worker_leaves_the_page_of_a_nightly_run_whose_process_it_finds_dead(api, tmp_path):
    data = DataConfig(source=str(tmp_path / "nowhere"))
    state = retrain(data=data, images=IMAGES, training=SHORT, workspace=tmp_path / "workspace", return_state=True)
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(state.state_details.flow_run_id)
    for hook in retrain.on_crashed_hooks:  # by name, as Prefect's runner calls it
        hook(flow=retrain, flow_run=run, state=Crashed(message="exit code 137"))
    assert "Crashed: exit code 137" in pages()[-1]


def test_a_nightly_run_that_fails_is_recorded_for_the_report_until_it_is_started_again(nights, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(registry.Registry, "promote", lambda *_, **__: 1 / 0)
        state = nights.run(promotion=FORCED)
    (record,), _ = records.read_all(nights.workspace)
    assert (record.flow, record.outcome, record.price_per_hour) == ("retrain", "failed", 3.6)
    assert record.summary == state.message
    assert 0 < record.seconds < 600

    nights.run(promotion=FORCED)
    assert [each.outcome for each in records.read_all(nights.workspace)[0]] == ["failed", "trained"]


def test_a_report_that_fails_spoils_no_nightly_run_and_the_record_is_kept(nights, monkeypatch):
    monkeypatch.setattr(report, "gather", lambda *_: 1 / 0)
    assert nights.run(promotion=FORCED).name == "Completed"
    assert [each.outcome for each in records.read_all(nights.workspace)[0]] == ["trained"]


def test_what_a_killed_nightly_run_decided_and_did_not_do_is_done_by_the_next(nights, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(registry.Registry, "promote", lambda *_, **__: 1 / 0)
        assert nights.run(promotion=FORCED).type == StateType.FAILED
    [version] = opened(nights.workspace).versions()
    assert (version.alias, version.decision.promote) == ("challenger", True)

    assert nights.run(promotion=FORCED).name == "Completed"
    [version] = opened(nights.workspace).versions()
    assert version.alias == "champion"


def test_a_nightly_run_that_starts_again_after_its_promotion_tells_what_it_did(nights, monkeypatch):
    told, headline = [], summary.nightly_headline
    monkeypatch.setattr(promotion_tasks, "emit_event", lambda name, *_, **__: told.append(name))
    monkeypatch.setattr(summary, "nightly_headline", lambda night: headline(night) if len(told) > 1 else 1 / 0)

    state = nights.run(retrain.with_options(retries=1, retry_delay_seconds=0), promotion=FORCED)

    assert state.name == "Completed"
    assert "new, since there was no champion" in pages()[-1]
    assert "- **started:** 2 times" in pages()[-1]
    assert told == ["bincount.champion.promoted"] * 2
    assert len(opened(nights.workspace).versions()) == 1
    assert nights.run().name == "Skipped"


def test_without_a_champion_a_nightly_run_trains_when_enough_is_new_since_the_last_version(nights):
    first = nights.run().result()
    assert (first.model.version.alias, first.model.decision.is_first) == ("challenger", True)
    assert "`bincount promote 1 --force` makes it champion all the same" in pages()[-1]

    assert nights.run().name == "Skipped"
    assert "0 new since version 1, the last, as none is champion" in pages()[-1]
    assert "nothing to compare with: there is no champion" in pages()[-1]
    nights.grow_to(380)
    assert nights.run().result().model.version.version == 2


def test_a_champion_whose_files_are_gone_stops_no_nightly_run(nights):
    nights.run(promotion=FORCED)
    shutil.rmtree(nights.workspace / "mlflow-artifacts")
    nights.grow_to(700)

    rules = RETRAINING.model_copy(update={"warm_start": True})
    state = nights.run(retraining=rules)

    assert state.name == "Completed"
    night = state.result()
    assert (
        "the champion was not evaluated on the new images: the files of models:/bincount/1 are gone" in night.drift.note
    )
    assert "the champion was not evaluated on the new images" in pages()[-1]
    assert "clean-up" in pages()[-1].rpartition("Time and cost")[2]
    assert opened(nights.workspace).runs.read_params(night.model.version.run_id)["weights"] == "none"
    assert not night.model.decision.promote
    assert "`bincount promote VERSION --force` puts another version in its place" in pages()[-1]


def test_a_nightly_run_outlives_a_restart_of_the_database(nights, tmp_path, monkeypatch):
    train = training_tasks.train_in_subprocess
    with servers.postgres_cluster(tmp_path) as serve, ExitStack() as database:
        url = database.enter_context(serve()).replace("+psycopg", "+asyncpg")
        setting = {"PREFECT_SERVER_DATABASE_CONNECTION_URL": url}

        def restart_and_train(*args, **settings) -> Trained:
            database.close()
            database.enter_context(serve())
            return train(*args, **settings)

        monkeypatch.setattr(training_tasks, "train_in_subprocess", restart_and_train)
        with servers.prefect_server(tmp_path / "prefect", **setting) as api, temporary_settings({PREFECT_API_URL: api}):
            state = nights.run(promotion=FORCED)
            assert pages()[-1].startswith("## Version 1 is the new champion")
    assert state.name == "Completed"
    assert opened(nights.workspace).find_champion().version == 1


def test_a_clean_up_that_fails_spoils_no_nightly_run(nights, monkeypatch):
    monkeypatch.setattr(retention, "plan", lambda *_: 1 / 0)
    assert nights.run().name == "Completed"
    assert "the clean-up failed, and the next nightly run tries again" in pages()[-1]


def test_a_bucket_that_refuses_access_fails_the_nightly_run_with_the_remedy(api, tmp_path):
    with FaultyS3({}) as server:
        server.fail("*", refused)
        state = retrain(
            data=server.config(), images=IMAGES, training=SHORT, workspace=tmp_path / "workspace", return_state=True
        )
    assert state.type == StateType.FAILED
    assert "refuses access; for a bucket of your own pass --no-unsigned" in state.message
    assert "refuses access" in pages()[-1]


def test_a_full_disk_fails_the_nightly_run_and_with_space_the_next_goes_on(api, small_disk, tmp_path, monkeypatch):
    synthetic.generate(tmp_path / "bins", 320, size=(64, 64))
    monkeypatch.setattr(training_tasks, "train_in_subprocess", train_in_subprocess)  # which is to tell of the disk
    monkeypatch.setattr(training_tasks.train_model, "retry_delay_seconds", [0, 0])
    mlflow = RegistryConfig(tracking_uri=f"sqlite:///{servers.with_database(tmp_path)}/mlflow.db")
    data = DataConfig(source=str(tmp_path / "bins"))

    state = retrain(data=data, images=IMAGES, training=SHORT, registry=mlflow, workspace=small_disk, return_state=True)
    assert state.type == StateType.FAILED
    assert "No space left on device; free some space and run again, nothing is lost" in state.message
    fetched = snapshots.latest(Workspace(root=small_disk).dataset(data)).num_images

    subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)
    night = retrain(data=data, images=IMAGES, training=SHORT, registry=mlflow, workspace=small_disk, promotion=FORCED)
    assert night.prepared.report.num_fetched == 0
    assert night.prepared.snapshot.num_images == fetched
    assert (night.model.version.version, night.model.version.alias) == (1, "champion")
