"""Tests of the report of a sync, and of when it is tried again."""

from collections import Counter

import pytest

from bincount.data import fetch
from bincount.data.fetch import SyncReport
from bincount.errors import SourceUnavailable

FEW = {"00001": "timed out"}
MANY = {f"{number:05d}": "timed out" for number in range(fetch.OUTAGE)}


def test_bins_that_did_not_arrive_are_worth_another_try_and_left_for_the_next_sync_at_the_last():
    report = SyncReport(num_fetched=0, unreachable=FEW)
    with pytest.raises(SourceUnavailable, match="1 photos did not arrive, such as: timed out"):
        report.raise_where_incomplete(is_last_try=False)
    report.raise_where_incomplete(is_last_try=True)


def test_nothing_of_many_bins_is_an_outage_also_at_the_last_try():
    with pytest.raises(SourceUnavailable, match=f"{fetch.OUTAGE} photos did not arrive"):
        SyncReport(num_fetched=0, unreachable=MANY).raise_where_incomplete(is_last_try=True)
    SyncReport(num_fetched=1, unreachable=MANY).raise_where_incomplete(is_last_try=True)


def test_a_whole_batch_needs_no_other_try():
    SyncReport(num_fetched=3, quarantined=Counter({"empty image": 1})).raise_where_incomplete(is_last_try=False)


def test_reports_of_batches_add_up():
    first = SyncReport(2, 100, Counter({"refused": 1}), FEW, 1.5)
    second = SyncReport(3, 50, Counter({"refused": 2, "no image": 1}), {"00002": "reset"}, 1.0)
    both = SyncReport(5, 150, Counter({"refused": 3, "no image": 1}), FEW | {"00002": "reset"}, 2.5)
    assert first + second == both
