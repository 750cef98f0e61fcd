"""Tests of a sync from a server that fails, and of objects that are no bins."""

from collections import Counter
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from bins import bring, jpeg, png, record
from faulty_s3 import (
    FaultyS3,
    missing,
    refused,
    replaced_by,
    reset,
    server_error,
    silent,
    slow_down,
    stalled,
    truncated,
)

from bincount.data import bins, client, fetch, source
from bincount.errors import SourceError, SourceUnavailable
from tasks import data as data_tasks

NO_ANSWER = [server_error, slow_down, silent]
BROKEN_OFF = [reset, truncated, stalled]
IMAGE, RECORD = "bin-images/00001.jpg", "metadata/00001.json"
LAST_TRY = data_tasks.BATCH_RETRIES + 1
HTML = b"<html><body>503 Service Unavailable</body></html>"


def objects(*image_ids: str) -> dict[str, bytes]:
    images = {f"bin-images/{image_id}.jpg": jpeg(int(image_id)) for image_id in image_ids}
    return images | {f"metadata/{image_id}.json": record(int(image_id) % 6) for image_id in image_ids}


def sync_from(server: FaultyS3, dataset: Path) -> fetch.SyncReport:
    return bring(None, dataset, server.config())


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    """As many tries as ever, sooner."""
    monkeypatch.setattr(client, "FIRST_WAIT", timedelta(seconds=0.01))
    monkeypatch.setattr(client, "LONGEST_WAIT", timedelta(seconds=0.1))


@pytest.fixture
def fault(request, monkeypatch):
    """A fault, with a short time-out for those that let a request wait."""
    if request.param in (stalled, silent):
        monkeypatch.setattr(client, "TIMEOUT", timedelta(seconds=0.5))
    return request.param


@pytest.fixture
def server():
    with FaultyS3(objects("00000", "00001", "00002"), page_size=2) as running:
        yield running


@pytest.mark.parametrize("key", [IMAGE, RECORD])
@pytest.mark.parametrize("fault", NO_ANSWER + BROKEN_OFF, indirect=True)
def test_a_fault_that_passes_costs_requests_and_no_bin(server, tmp_path, fault, key):
    server.fail(key, fault, times=2)
    report = sync_from(server, tmp_path)
    assert (report.num_fetched, report.unreachable) == (3, {})
    assert server.counts() == dict.fromkeys(server.objects, 1) | {key: 3}
    assert (tmp_path / "originals" / key).read_bytes() == server.objects[key]


@pytest.mark.services
@pytest.mark.parametrize("fault", NO_ANSWER + BROKEN_OFF, indirect=True)
def test_a_fault_that_stays_leaves_the_bin_without_a_row_and_the_next_sync_fetches_it(server, tmp_path, fault):
    server.fail(IMAGE, fault)
    report = sync_from(server, tmp_path)
    assert (report.num_fetched, list(report.unreachable)) == (2, ["00001"])
    assert "does not deliver bin-images/00001.jpg" in report.unreachable["00001"]
    assert server.count(IMAGE) == client.MAX_RETRIES + 1
    assert bins.read(tmp_path)["image_id"].to_list() == ["00000", "00002"]
    assert not (tmp_path / "originals" / IMAGE).exists()
    server.repair()
    assert sync_from(server, tmp_path).num_fetched == 1
    assert server.count(IMAGE) == client.MAX_RETRIES + 2
    assert server.count("bin-images/00002.jpg") == 1


def test_many_failed_requests_do_not_come_back_all_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(client, "FIRST_WAIT", timedelta(seconds=0.2))
    monkeypatch.setattr(client, "LONGEST_WAIT", timedelta(seconds=2))
    with FaultyS3(objects(*(f"{number:05d}" for number in range(20)))) as server:
        server.fail("metadata/*", slow_down, times=2)
        assert sync_from(server, tmp_path).num_fetched == 20
        waits = [times[2] - times[1] for name, times in server.times.items() if name.startswith("metadata/")]
    assert max(waits) - min(waits) > 0.05


@pytest.mark.parametrize(
    ("key", "content", "reason"),
    [
        (IMAGE, b"", "empty image"),
        (IMAGE, HTML, "not an image: begins with '<html><body>'"),
        (IMAGE, jpeg(1)[:-200], "damaged image: "),
        (IMAGE, png(30_000, 30_000), "too many pixels"),
        (RECORD, b"", "malformed record: "),
        (RECORD, HTML, "malformed record: "),
        (RECORD, b'{"EXPECTED_QUANTITY": NaN}', "unusable quantity: 'nan'"),
        (RECORD, b'{"EXPECTED_QUANTITY": "3"}', "unusable quantity: '3'"),
        (RECORD, b"[" * 10_000_000, "malformed record: 10,000,000 bytes"),
        (RECORD, b"[" * 900_000, "malformed record: "),
    ],
    ids=[
        "no bytes",
        "HTML",
        "cut off",
        "30,000 x 30,000 pixels",
        "no bytes of a record",
        "HTML for a record",
        "NaN",
        "a string",
        "10 MB of nesting",
        "0.9 MB of nesting",
    ],
)
def test_an_object_that_is_no_bin_is_quarantined_once_with_the_reason(server, tmp_path, key, content, reason):
    server.objects[key] = content
    report = sync_from(server, tmp_path)
    assert (report.num_fetched, report.quarantined, report.unreachable) == (2, {bins.reason_kind(reason): 1}, {})
    assert bins.read(tmp_path)["reason"][1].startswith(reason)
    asked = server.counts()
    assert max(asked.values()) == 1
    sync_from(server, tmp_path)
    assert server.counts() == asked


def test_an_object_that_is_listed_and_not_there_is_quarantined_once_as_vanished(server, tmp_path):
    server.fail(IMAGE, missing)
    assert sync_from(server, tmp_path).quarantined == {"vanished": 1}
    asked = server.counts()
    assert asked[IMAGE] == 1
    sync_from(server, tmp_path)
    assert server.counts() == asked


@pytest.mark.parametrize("key", [IMAGE, RECORD])
def test_one_refused_object_is_quarantined_and_asked_for_again_since_no_listing_shows_a_permission(
    server, tmp_path, key
):
    server.fail(key, refused)
    for tries in (1, 2):
        assert sync_from(server, tmp_path).quarantined == {"refused": 1}
        assert bins.read(tmp_path)["reason"].to_list() == ["", f"refused: {key}", ""]
        assert server.count(key) == tries
    assert server.count("metadata/00002.json") == 1
    server.repair()
    assert sync_from(server, tmp_path).num_fetched == 1
    assert bins.read(tmp_path)["status"].to_list() == ["ok"] * 3


@pytest.mark.parametrize("what", ["*", "list *-images/*", "bin-images/*", "metadata/*"])
def test_a_bucket_that_refuses_everything_is_an_error_that_names_the_remedy(server, tmp_path, what):
    server.fail(what, refused)
    with pytest.raises(SourceError, match="--no-unsigned") as raised:
        sync_from(server, tmp_path)
    assert not isinstance(raised.value, SourceUnavailable)
    assert bins.read(tmp_path).empty


def test_new_bins_that_are_all_refused_do_not_stop_a_dataset_that_has_others(server, tmp_path):
    sync_from(server, tmp_path)
    server.objects |= objects("00003", "00004")
    server.fail("*/0000[34].*", refused)
    assert sync_from(server, tmp_path).quarantined == {"refused": 2}


@pytest.mark.parametrize("content", [jpeg(9, (300, 300)), HTML, b""], ids=["photo", "html", "nothing"])
def test_an_answer_of_another_size_than_was_listed_is_not_taken_and_left_for_the_next_sync(server, tmp_path, content):
    server.fail(IMAGE, replaced_by(content))
    report = sync_from(server, tmp_path)
    assert (report.num_fetched, report.quarantined, list(report.unreachable)) == (2, Counter(), ["00001"])
    assert f"{len(content):,} bytes came and {len(server.objects[IMAGE]):,} were listed" in report.unreachable["00001"]
    assert server.count(IMAGE) == 1
    server.repair()
    assert sync_from(server, tmp_path).num_fetched == 1


@pytest.mark.parametrize("fault", NO_ANSWER, indirect=True)
def test_a_listing_whose_second_page_fails_once_is_complete(server, fault):
    server.fail("list bin-images/ page 2", fault, times=1)
    listed = source.open_source(server.config()).list_bins()
    assert listed["image_id"].to_list() == ["00000", "00001", "00002"]
    assert listed.notna().all(axis=None)
    assert server.count("list bin-images/ page 2") == 2


@pytest.mark.parametrize("fault", BROKEN_OFF, indirect=True)
def test_a_page_that_breaks_off_is_no_short_listing_but_worth_another_try(server, tmp_path, fault):
    server.fail("list bin-images/ page 2", fault, times=1)
    with pytest.raises(SourceUnavailable, match="s3://bins cannot be listed"):
        sync_from(server, tmp_path)
    assert sync_from(server, tmp_path).num_fetched == 3


def test_a_listing_that_never_comes_to_its_end_is_given_up(server, tmp_path):
    server.fail("list metadata/ page 2", slow_down)
    with pytest.raises(SourceUnavailable, match="s3://bins cannot be listed"):
        sync_from(server, tmp_path)
    assert server.count("list metadata/ page 2") == client.MAX_RETRIES + 1
    assert bins.read(tmp_path).empty


def test_a_padded_and_an_unpadded_key_of_one_number_are_two_bins(server, tmp_path):
    server.objects |= {"bin-images/1.jpg": jpeg(7), "metadata/1.json": record(5)}
    assert sync_from(server, tmp_path).num_fetched == 4
    rows = bins.read(tmp_path).set_index("image_id")
    assert rows.loc[["00001", "1"], "quantity"].to_list() == [1, 5]
    assert server.count("bin-images/1.jpg") == server.count(IMAGE) == 1
    assert (tmp_path / "originals/bin-images/1.jpg").read_bytes() == jpeg(7)


def test_only_the_object_whose_etag_changed_is_fetched_again(server, tmp_path):
    sync_from(server, tmp_path)
    server.objects[RECORD] = record(4)
    assert sync_from(server, tmp_path).num_fetched == 1
    assert server.counts() == dict.fromkeys(server.objects, 1) | {RECORD: 2}
    assert bins.read(tmp_path)["quantity"].to_list() == [0, 4, 2]


def fetch_batch(server: FaultyS3, dataset: Path, monkeypatch, run_count: int) -> fetch.SyncReport:
    """The flow's task, as Prefect calls it the run_count-th time."""
    monkeypatch.setattr(data_tasks, "task_run", SimpleNamespace(run_count=run_count))
    plan = data_tasks.plan_sync.fn(server.config(), dataset)
    return data_tasks.fetch_batch.fn(server.config(), dataset, plan, 1)


def test_the_task_is_tried_again_while_some_bins_do_not_arrive_and_keeps_those_that_did(server, tmp_path, monkeypatch):
    server.fail(IMAGE, server_error)
    with pytest.raises(SourceUnavailable, match=r"1 photos did not arrive, such as: .*00001\.jpg"):
        fetch_batch(server, tmp_path, monkeypatch, run_count=LAST_TRY - 1)
    assert bins.read(tmp_path)["image_id"].to_list() == ["00000", "00002"]


def test_the_last_try_of_the_task_leaves_them_for_the_next_run(server, tmp_path, monkeypatch):
    server.fail(IMAGE, server_error)
    report = fetch_batch(server, tmp_path, monkeypatch, run_count=LAST_TRY)
    assert (report.num_fetched, list(report.unreachable)) == (2, ["00001"])


def test_one_bin_that_never_arrives_does_not_fail_the_task_every_night(server, tmp_path, monkeypatch):
    server.fail(IMAGE, server_error)
    sync_from(server, tmp_path)
    report = fetch_batch(server, tmp_path, monkeypatch, run_count=LAST_TRY)
    assert (report.num_fetched, list(report.unreachable)) == (0, ["00001"])


def test_the_task_fails_when_many_bins_were_asked_for_and_none_arrived(server, tmp_path, monkeypatch):
    server.objects |= objects(*(f"{number:05d}" for number in range(fetch.OUTAGE)))
    server.fail("metadata/*", server_error)
    with pytest.raises(SourceUnavailable, match=f"{fetch.OUTAGE} photos did not arrive"):
        fetch_batch(server, tmp_path, monkeypatch, run_count=LAST_TRY)
