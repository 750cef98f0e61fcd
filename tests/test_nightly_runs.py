"""Nights against a real Prefect server and a source that grows: what each does, and what it leaves."""

import asyncio
import html
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pandas as pd
import pytest
import servers
from nightly_runs import FORCED, PROMOTION, RETRAINING, SHORT, TRAINING, NightlyRuns, opened, pages
from prefect.client.schemas.objects import StateType
from prefect.server.schemas.schedules import CronSchedule
from prefect.states import State

from bincount.data import snapshots
from bincount.reporting import records
from bincount.settings import RetrainConfig
from bincount.tracking import client
from bincount.training.spec import weights_digest
from bincount.workspace import Workspace
from flows.results import NightlyRun
from flows.retrain import only_nightly_run

pytestmark = [pytest.mark.services, pytest.mark.usefixtures("training_here")]

BINS = (400, 1200, 1212, 1212, 1600)  # in the source on each of five nights


@pytest.fixture(scope="module")
def growing(api, tmp_path_factory) -> NightlyRuns:
    return NightlyRuns(tmp_path_factory.mktemp("growing"), BINS[0])


@pytest.fixture(scope="module")
def workspace(growing) -> Path:
    return growing.workspace


@pytest.fixture(scope="module")
def states(growing) -> list[State[NightlyRun]]:
    """Five nights of a source that grows, but for the fourth; the last starts from the champion's weights."""
    ended = []
    for num_bins in BINS:
        growing.grow_to(num_bins)
        rules = RETRAINING.model_copy(update={"warm_start": num_bins == BINS[-1]})
        promotion = FORCED if num_bins == BINS[0] else PROMOTION  # the first has few bins to train on
        ended.append(growing.run(training=TRAINING, retraining=rules, promotion=promotion))
    return ended


@pytest.fixture(scope="module")
def nights(states) -> list[NightlyRun]:
    return [state.result() for state in states]


def test_the_champion_moves_when_and_only_when_the_gate_says_so(nights, workspace):
    champion = None
    for night in nights:
        if night.model and night.model.decision.promote:
            champion = night.model.version.version
        if night.model:
            assert night.model.version.alias == ("champion" if night.model.decision.promote else "challenger")
    decided = [night.model.decision.promote for night in nights if night.model]
    assert decided[:2] == [True, True]  # the first, by force, and one with three times the images
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


def test_a_nightly_run_fetches_and_counts_what_is_new_and_nothing_else(nights):
    fetched = [night.prepared.report.num_fetched for night in nights]
    listed = [night.prepared.plan.num_listed for night in nights]
    assert 0 < fetched[2] <= 12
    assert fetched[3] == 0
    assert [night.new_data.num_new for night in nights][2] <= 12
    assert listed[2] - listed[1] == 12


def test_a_nightly_run_with_nothing_new_is_skipped_and_its_page_says_why(states, nights):
    assert [(state.type, state.name) for state in states[3:]] == [
        (StateType.COMPLETED, "Skipped"),
        (StateType.COMPLETED, "Completed"),
    ]
    assert nights[3].model is None
    assert "version 3 was trained on these images already" in states[3].message
    assert states[3].message in pages()[3]
    assert pages()[3].startswith("## Nothing was trained; version 2 stays champion\n\n")


def test_the_page_of_a_nightly_run_says_what_was_new_decided_and_spent(nights):
    page = pages()[1]
    assert f"{nights[1].new_data.num_new:,} new since version 1, the champion" in page
    assert nights[1].model.decision.summary() in page
    assert "| train |" in page  # with its cost
    assert "USD" in page
    assert page.startswith("## Version 2 is the new champion\n\n**Accuracy ")
    for title in ("Compared on", "Accuracy over time", "Images", "Class balance", "Worst mistakes", "Time and cost"):
        assert f"## {title}" in page


def test_each_nightly_run_is_recorded_and_the_report_shows_them(nights, states, workspace):
    found, damaged = records.read_all(workspace)
    assert [each.outcome for each in found[:5]] == ["trained", "trained", "trained", "skipped", "trained"]
    assert [each.version for each in found[:5]] == [1, 2, 3, None, 4]
    assert [each.promoted for each in found[:5] if each.version] == [
        night.model.decision.promote for night in nights if night.model
    ]
    assert [each.num_new for each in found[:5]] == [night.new_data.num_new for night in nights]
    assert [each.drift for each in found[:5]] == [night.drift for night in nights]
    assert all(each.cost == pytest.approx(sum(each.timings.values()) / 1000) for each in found)  # 3.6 USD an hour
    assert not damaged
    page = (workspace / "report.html").read_text()
    champion = opened(workspace).find_champion()
    assert f"Version {champion.version} is champion" in page
    assert nights[3].new_data.skip_reason in html.unescape(page)


def test_the_report_is_an_artifact_and_a_file_of_the_run_of_the_history(states, workspace, tmp_path):
    assert "is champion" in pages("report")[4]
    registry = opened(workspace)
    run = registry.champion_alias.history.read().run_id
    kept = Path(registry.client.download_artifacts(run, "report.html", str(tmp_path)))
    assert kept.read_text() == (workspace / "report.html").read_text()


def test_too_few_new_images_are_waited_for(nights, growing):
    state = growing.run(training=TRAINING, retraining=RetrainConfig(min_new_images=5000))
    assert state.name == "Skipped"
    assert "a training needs 5,000 (min_new_images)" in state.message


def test_a_nightly_run_can_start_from_the_champion(nights, workspace):
    champion = nights[4].new_data.champion
    assert champion.version == 2
    weights = Workspace(root=workspace).weights(weights_digest(nights[1].model.trained.checkpoint))
    params = [opened(workspace).runs.read_params(nights[number].model.version.run_id) for number in (2, 4)]
    assert [each["weights"] for each in params] == ["none", str(weights)]


def test_a_source_that_does_not_grow_is_taken_some_bins_a_night(api, tmp_path):
    nights, wanted = NightlyRuns(tmp_path, 500), []
    for _ in range(3):
        night = nights.run(retraining=RetrainConfig(grow_by=200, min_new_images=5000)).result()
        wanted.append(night.prepared.plan.num_wanted)
    assert wanted == [pytest.approx(200, abs=4), pytest.approx(400, abs=8), pytest.approx(500, abs=8)]


def test_other_settings_make_another_training_of_images_that_were_trained_on(api, tmp_path):
    nights, rules = NightlyRuns(tmp_path), RETRAINING.model_copy(update={"min_new_images": 0})
    nights.run()
    assert nights.run(retraining=rules).name == "Skipped"
    assert nights.run(retraining=rules, training=SHORT.model_copy(update={"epochs": 2})).name == "Completed"
    assert len(opened(nights.workspace).versions()) == 2


def test_a_nightly_run_reads_five_manifests_at_most_and_opens_mlflow_four_times_at_most(api, tmp_path, monkeypatch):
    nights = NightlyRuns(tmp_path, 400)
    nights.run(training=TRAINING, promotion=FORCED)
    nights.grow_to(700)
    calls = Counter()

    def count(module, name: str) -> None:
        real = getattr(module, name)

        def counting(*arguments, **options):
            calls[name] += 1
            return real(*arguments, **options)

        monkeypatch.setattr(module, name, counting)

    count(snapshots, "load_manifest")
    count(client, "open_experiment")
    snapshots._keep_manifest.cache_clear()  # as in a process of its own
    client._connection.cache_clear()
    night = nights.run(training=TRAINING).result()

    assert night.new_data.champion.version == 1
    assert night.model.decision.gains  # trained, and compared with the champion
    assert 1 <= calls["load_manifest"] <= 5
    assert 1 <= calls["open_experiment"] <= 4


def test_of_two_nightly_runs_in_one_workspace_the_second_waits(tmp_path, caplog):
    order = []

    def second() -> None:
        with only_nightly_run(tmp_path):
            order.append("second")

    with ThreadPoolExecutor(1) as pool:
        with only_nightly_run(tmp_path):
            waiting = pool.submit(second)
            servers.wait_for(lambda: "another nightly run is at work in" in caplog.text, 60)
            order.append("first")
        waiting.result(60)
    assert order == ["first", "second"]


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
