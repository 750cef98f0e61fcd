"""Nights against a real Prefect server and a bucket that grows: what each does, and what it leaves."""

import asyncio
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import boto3
import pandas as pd
import pytest
import servers
from faulty_s3 import FaultyS3, refused
from obstore.store import S3Store
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.objects import StateType
from prefect.server.schemas.schedules import CronSchedule
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Crashed, State

from bincount import registry, retention
from bincount.data import drawn, manifest
from bincount.errors import SourceError
from bincount.settings import (
    DataConfig,
    ImageConfig,
    PromotionConfig,
    RegistryConfig,
    RetrainConfig,
    TrainConfig,
    Workspace,
)
from bincount.training.files import Trained, weights_digest
from flows import summary
from flows.retrain import Night, only_night, retrain
from tasks import promotion as promotion_tasks
from tasks import training as training_tasks

pytestmark = pytest.mark.services

BINS = (400, 1200, 1212, 1212, 1600)  # in the bucket on each of five nights
IMAGES = ImageConfig(image_size=32)
TRAINING = TrainConfig(
    model="small", weights="none", epochs=6, learning_rate=3e-3, min_crop=0.8, dropout=0.1, keep="last"
)
SETTINGS = {
    "retraining": RetrainConfig(min_new_images=10, price_per_hour=3.6),
    "promotion": PromotionConfig(max_class_loss=100),  # some classes have five images
}


class GrowingBucket:
    """A public bucket of drawn bins behind an S3 API, to which more are added."""

    def __init__(self, endpoint: str, name: str, folder: Path):
        self.data = DataConfig(source=f"s3://{name}", endpoint=endpoint, concurrency=8)
        self._store = S3Store(
            name,
            endpoint=endpoint,
            region="us-east-1",
            access_key_id="tests",
            secret_access_key="tests",
            client_options={"allow_http": True},
        )
        self._folder, self._sent = folder, set()
        boto3.client(
            "s3",
            endpoint_url=endpoint,
            region_name="us-east-1",
            aws_access_key_id="tests",
            aws_secret_access_key="tests",
        ).create_bucket(Bucket=name, ACL="public-read")

    def grow_to(self, num_bins: int) -> None:
        """Draw bins until there are so many, and upload the new ones."""
        drawn.draw(self._folder, num_bins, size=(96, 96))
        for file in sorted(self._folder.rglob("*.*")):
            if file not in self._sent:
                self._store.put(file.relative_to(self._folder).as_posix(), file, attributes={})
                self._sent.add(file)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return servers.with_database(tmp_path_factory.mktemp("workspace"))


@pytest.fixture(scope="module")
def bucket(s3_endpoint, tmp_path_factory):
    return GrowingBucket(s3_endpoint, "nights", tmp_path_factory.mktemp("drawn"))


@pytest.fixture(scope="module")
def states(api, bucket, workspace) -> list[State[Night]]:
    """Five nights of a bucket that grows, but for the fourth; the last starts from the champion's weights."""
    ended = []
    for num_bins in BINS:
        bucket.grow_to(num_bins)
        warm = {"warm_start": num_bins == BINS[-1]}
        settings = SETTINGS | {"retraining": SETTINGS["retraining"].model_copy(update=warm)}
        ended.append(retrain(bucket.data, IMAGES, TRAINING, workspace=workspace, **settings, return_state=True))
    return ended


@pytest.fixture(scope="module")
def nights(states) -> list[Night]:
    return [state.result() for state in states]


def opened(workspace, config=RegistryConfig()):
    places = Workspace(root=workspace)
    return registry.open_registry(places.tracking_uri(config), places.artifacts, config)


def pages() -> list[str]:
    """The pages that the nights have left, the first first."""
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["night"])))
    return [artifact.data for artifact in sorted(found, key=lambda artifact: artifact.created)]


def test_the_champion_moves_when_and_only_when_the_gate_says_so(nights, workspace):
    champion = None
    for night in nights:
        if night.model and night.model.decision.promote:
            champion = night.model.version.version
        if night.model:
            assert night.model.version.alias == ("champion" if night.model.decision.promote else "challenger")
    decided = [night.model.decision.promote for night in nights if night.model]
    assert decided[:2] == [True, True]  # the first, and one with three times the images
    assert decided[2] is False  # twelve bins more change nothing
    assert opened(workspace).find_champion().version == champion
    assert len(opened(workspace).versions()) == len(decided) == 4


def test_the_model_improves(nights):
    accuracy = [night.model.evaluation.metrics.accuracy for night in nights if night.model]
    assert accuracy[1] > accuracy[0] + 0.1


def test_no_image_ever_changes_its_split(nights):
    before = pd.Series(dtype="str")
    for night in nights:
        rows = night.prepared.snapshot.labelled().set_index("image_id")
        assert rows["split"].reindex(before.index).dropna().equals(before.reindex(rows.index).dropna())
        assert len(rows) >= len(before)
        assert rows.groupby("group")["split"].nunique().max() == 1
        before = rows["split"]


def test_a_night_fetches_and_counts_what_is_new_and_nothing_else(nights):
    fetched = [night.prepared.report.num_fetched for night in nights]
    listed = [night.prepared.plan.num_listed for night in nights]
    assert 0 < fetched[2] <= 12
    assert fetched[3] == 0
    assert [night.news.num_new for night in nights][2] <= 12
    assert listed[2] - listed[1] == 12


def test_a_night_with_nothing_new_is_skipped_and_its_page_says_why(states, nights):
    assert [(state.type, state.name) for state in states[3:]] == [
        (StateType.COMPLETED, "Skipped"),
        (StateType.COMPLETED, "Completed"),
    ]
    assert nights[3].model is None
    assert "version 3 has learned from these images already" in states[3].message
    assert states[3].message in pages()[3]


def test_the_page_of_a_night_says_what_was_new_decided_and_spent(nights):
    page = pages()[1]
    assert f"{nights[1].news.num_new:,} new since version 1, the champion" in page
    assert nights[1].model.decision.words().splitlines()[0] in page
    assert "| train |" in page
    assert "USD" in page
    for title in ("Images", "Class balance", "Decision", "Time and cost"):
        assert f"## {title}" in page


def test_too_few_new_images_are_waited_for(nights, bucket, workspace):
    asked = RetrainConfig(min_new_images=5000)
    state = retrain(bucket.data, IMAGES, TRAINING, workspace=workspace, retraining=asked, return_state=True)
    assert state.name == "Skipped"
    assert "a training needs 5,000 (min_new_images)" in state.message


def test_a_night_can_start_from_the_champion(nights, workspace):
    champion = nights[4].news.champion
    assert champion.version == 2
    weights = Workspace(root=workspace).weights(weights_digest(nights[1].model.trained.checkpoint))
    params = [opened(workspace).params(nights[number].model.version) for number in (2, 4)]
    assert [each["weights"] for each in params] == ["none", str(weights)]


def test_a_source_that_does_not_grow_is_taken_some_bins_a_night(api, tmp_path):
    drawn.draw(tmp_path / "bins", 500, size=(64, 64))
    data = DataConfig(source=str(tmp_path / "bins"))
    asked = RetrainConfig(grow_by=200, min_new_images=5000)
    model = TRAINING.model_copy(update={"epochs": 1})
    workspace, wanted = servers.with_database(tmp_path / "workspace"), []
    for _ in range(3):
        night = retrain(data, IMAGES, model, workspace=workspace, retraining=asked)
        wanted.append(night.prepared.plan.num_wanted)
    assert wanted == [pytest.approx(200, abs=4), pytest.approx(400, abs=8), pytest.approx(500, abs=8)]


def test_a_night_that_fails_leaves_a_page_too(api, tmp_path):
    data = DataConfig(source=str(tmp_path / "nowhere"))
    with pytest.raises(SourceError):
        retrain(data, IMAGES, TRAINING, workspace=tmp_path / "workspace")
    assert "nowhere" in pages()[-1]
    assert "What was done is kept" in pages()[-1]


def test_a_worker_leaves_the_page_of_a_night_whose_process_it_finds_dead(api, tmp_path):
    data = DataConfig(source=str(tmp_path / "nowhere"))
    state = retrain(data, IMAGES, TRAINING, workspace=tmp_path / "workspace", return_state=True)
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(state.state_details.flow_run_id)
    [hook] = retrain.on_crashed_hooks
    hook(flow=retrain, flow_run=run, state=Crashed(message="exit code 137"))  # by name, as Prefect's runner calls it
    assert "Crashed: exit code 137" in pages()[-1]


class SmallNights:
    """Nights on a few drawn bins in a folder, each of seconds."""

    training = TRAINING.model_copy(update={"epochs": 1})

    def __init__(self, folder: Path):
        self.source, self.workspace = folder / "bins", servers.with_database(folder / "workspace")
        self.grow_to(330)

    def grow_to(self, num_bins: int) -> None:
        drawn.draw(self.source, num_bins, size=(64, 64))

    def run(self, night=retrain, **settings) -> State[Night]:
        data = DataConfig(source=str(self.source))
        settings = {"training": self.training, **SETTINGS} | settings
        return night(data, IMAGES, workspace=self.workspace, **settings, return_state=True)


@pytest.fixture
def small_nights(api, tmp_path) -> SmallNights:
    return SmallNights(tmp_path)


def test_what_a_killed_night_decided_and_did_not_do_is_done_by_the_next(small_nights, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(registry.Registry, "promote", lambda *_, **__: 1 / 0)
        assert small_nights.run().type == StateType.FAILED
    [version] = opened(small_nights.workspace).versions()
    assert (version.alias, version.tags[registry.DECISION_TAG].split(":")[0]) == ("challenger", "Promote")

    assert small_nights.run().name == "Completed"
    [version] = opened(small_nights.workspace).versions()
    assert version.alias == "champion"


def test_a_night_that_starts_again_after_its_promotion_tells_what_it_did(small_nights, monkeypatch):
    told, headline = [], summary.night_headline
    monkeypatch.setattr(promotion_tasks, "emit_event", lambda name, *_, **__: told.append(name))
    monkeypatch.setattr(summary, "night_headline", lambda night: headline(night) if len(told) > 1 else 1 / 0)

    state = small_nights.run(retrain.with_options(retries=1, retry_delay_seconds=0))

    assert state.name == "Completed"
    assert "new, since there was no champion" in pages()[-1]
    assert "started | 2 times" in re.sub(" +", " ", pages()[-1])
    assert told == ["bincount.champion.promoted"] * 2
    assert len(opened(small_nights.workspace).versions()) == 1
    assert small_nights.run().name == "Skipped"


def test_a_champion_whose_files_are_gone_stops_no_night(small_nights):
    small_nights.run()
    shutil.rmtree(small_nights.workspace / "mlflow-artifacts")
    small_nights.grow_to(700)

    rules = SETTINGS["retraining"].model_copy(update={"warm_start": True})
    state = small_nights.run(retraining=rules)

    assert state.name == "Completed"
    night = state.result()
    assert "the champion was not asked: the files of models:/bincount/1 are gone" in night.drift.note
    assert "the champion was not asked" in pages()[-1]
    assert "clean-up" in pages()[-1].rpartition("Time and cost")[2]
    assert opened(small_nights.workspace).params(night.model.version)["weights"] == "none"
    assert not night.model.decision.promote
    assert "`bincount promote VERSION --force` puts another version in its place" in pages()[-1]


def test_other_settings_make_another_training_of_images_that_were_learned_from(small_nights):
    rules = SETTINGS["retraining"].model_copy(update={"min_new_images": 0})
    small_nights.run()
    assert small_nights.run(retraining=rules).name == "Skipped"
    assert small_nights.run(retraining=rules, training=TRAINING.model_copy(update={"epochs": 2})).name == "Completed"
    assert len(opened(small_nights.workspace).versions()) == 2


def test_a_night_outlives_a_restart_of_the_database(small_nights, tmp_path, monkeypatch):
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
            state = small_nights.run()
            assert pages()[-1].startswith("## Night")
    assert state.name == "Completed"
    assert opened(small_nights.workspace).find_champion().version == 1


def test_a_clean_up_that_fails_spoils_no_night(small_nights, monkeypatch):
    monkeypatch.setattr(retention, "plan", lambda *_: 1 / 0)
    assert small_nights.run().name == "Completed"
    assert "the clean-up failed, and the next night tries again" in pages()[-1]


def test_of_two_nights_in_one_workspace_the_second_waits(tmp_path, caplog):
    order = []

    def second() -> None:
        with only_night(tmp_path):
            order.append("second")

    with ThreadPoolExecutor(1) as pool:
        with only_night(tmp_path):
            waiting = pool.submit(second)
            servers.wait_for(lambda: "another night is at work in" in caplog.text, 60)
            order.append("first")
        waiting.result(60)
    assert order == ["first", "second"]


def test_a_bucket_that_refuses_access_fails_the_night_with_the_remedy(api, tmp_path):
    with FaultyS3({}) as server:
        server.fail("*", refused)
        state = retrain(server.config(), IMAGES, TRAINING, workspace=tmp_path / "workspace", return_state=True)
    assert state.type == StateType.FAILED
    assert "refuses access; for a bucket of your own pass --no-unsigned" in state.message
    assert "refuses access" in pages()[-1]


def test_a_full_disk_fails_the_night_and_with_space_the_next_goes_on(api, small_disk, tmp_path, monkeypatch):
    drawn.draw(tmp_path / "bins", 320, size=(64, 64))
    monkeypatch.setattr(training_tasks.train_model, "retry_delay_seconds", [0, 0])
    mlflow = RegistryConfig(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    data, model = DataConfig(source=str(tmp_path / "bins")), TRAINING.model_copy(update={"epochs": 2})

    state = retrain(data, IMAGES, model, mlflow, small_disk, return_state=True)
    assert state.type == StateType.FAILED
    assert "No space left on device; free some space and run again, nothing is lost" in state.message
    fetched = manifest.latest(Workspace(root=small_disk).dataset(data)).num_images

    subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)
    night = retrain(data, IMAGES, model, mlflow, small_disk)
    assert night.prepared.report.num_fetched == 0
    assert night.prepared.snapshot.num_images == fetched
    assert (night.model.version.version, night.model.version.alias) == (1, "champion")


@pytest.mark.parametrize(
    ("zone", "cron"), [("UTC", "17 2 * * *"), ("Europe/Berlin", "17 4 * * *"), ("America/New_York", "17 4 * * *")]
)
def test_each_day_has_one_night_also_when_the_clocks_change(zone, cron):
    schedule = CronSchedule(cron=cron, timezone=zone)
    begin = datetime(2026, 1, 1, tzinfo=ZoneInfo(zone))

    dates = asyncio.run(schedule.get_dates(n=365, start=begin))

    local = [date.astimezone(ZoneInfo(zone)) for date in dates]
    assert [date.date() for date in local] == [(begin + timedelta(days=day)).date() for day in range(365)]
    assert {(date.hour, date.minute) for date in local} == {(int(cron.split()[1]), 17)}
