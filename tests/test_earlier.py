"""The earlier pictures of audited bins, and what they add."""

import dataclasses

import numpy as np
import pytest
from made_pairs import made_pairs, records_of
from made_scores import COUNTS

from bincount.evaluation import earlier, history_quality, ranking
from bincount.evaluation.joint import PairErrors
from bincount.evaluation.record_errors import RecordErrors
from bincount.problem import Classes

ERRORS = RecordErrors.prior(0.05)


def find(pairs, scores, outputs=COUNTS):
    return earlier.find(pairs, records_of(pairs), scores, outputs)


def test_each_bin_of_the_audit_with_an_earlier_picture_is_found_with_its_record_and_its_scores():
    pairs, scores = made_pairs(400)
    found = find(pairs, scores)
    expected = pairs[pairs["split"] == "test"]
    assert found.table["image_id"].tolist() == expected["after"].tolist()
    assert found.table["before"].tolist() == expected["before"].tolist()
    assert found.table["recorded_before"].tolist() == expected["count_before"].astype(str).tolist()
    of_before = scores.set_index("image_id").loc[expected["before"], [f"p_{count}" for count in range(6)]]
    assert np.array_equal(found.before, of_before.to_numpy(np.float64))
    assert found.locate(expected["before"]).tolist() == [-1] * 200


def test_an_earlier_picture_that_was_not_scored_says_what_the_network_says_on_average():
    pairs, scores = made_pairs(400)
    later = scores[scores["image_id"].isin(pairs["after"])]
    found = find(pairs, later)
    assert len(found) == 200
    assert np.array_equal(found.before, found.shares)
    by_another = scores.assign(scored_by=np.where(scores["image_id"].isin(pairs["after"]), "model", "fold 1 of 4"))
    found = find(pairs, by_another)
    assert np.array_equal(found.before, found.shares)


def test_a_count_that_no_audited_bin_may_have_keeps_its_share():
    outputs = Classes.parse("0..7")
    pairs, scores = made_pairs(2000, outputs)
    some = scores[scores["recorded"].astype(int) < 6]  # the network was trained on the bins of 6 and 7 items
    found, everything = find(pairs, some, outputs), find(pairs, scores, outputs)
    assert found.shares[0] == pytest.approx(everything.shares[0], abs=0.03)
    assert found.shares[0].sum() == pytest.approx(1)


def test_bins_without_enough_pairs_or_without_counts_have_no_history():
    pairs, scores = made_pairs(400)
    assert find(pairs.iloc[101:], scores) is None
    assert find(pairs.assign(split="test"), scores) is None
    assert find(pairs, scores, Classes(names=COUNTS.names, ordered=False)) is None
    assert find(*made_pairs(400, many := Classes.parse("0..40")), many) is None  # a table of four counts for each pair
    assert find(pairs.head(200), scores) is None  # none of the audited bins has a pair


def test_a_bin_whose_record_before_is_no_answer_is_left_out():
    pairs, scores = made_pairs(400)
    pairs.loc[pairs.index[-1], "count_before"] = 7
    assert pairs["after"].iloc[-1] not in find(pairs, scores).table["image_id"].tolist()


def test_no_recorded_change_of_a_bin_of_train_speaks_for_itself():
    pairs, scores = made_pairs(600)
    odd = pairs.index[10]
    pairs.loc[odd, ["count_before", "count_after"]] = 5, 0  # the only pick of five items
    train = scores.head(2).assign(
        image_id=pairs.loc[odd, ["before", "after"]].to_numpy(), group=pairs.loc[odd, "group"]
    )
    found = find(pairs, train.assign(recorded=["5", "0"]))
    row = found.table.iloc[0]
    assert row["fold"] > 0
    assert found.transitions[row["fold"]][5, 0] < 0.1 * found.transitions[0][5, 0]


@pytest.mark.parametrize("alike", [0, 0.7])
def test_how_alike_a_network_errs_on_both_pictures_is_measured(alike):
    pairs, scores = made_pairs(3000, Classes.parse("0..9"), alike=alike)
    found = find(pairs, scores, Classes.parse("0..9"))
    assert found.correlation == pytest.approx(alike, abs=0.12)
    few = find(pairs, scores.tail(20), Classes.parse("0..9"))
    assert few.correlation == pytest.approx(earlier.CORRELATION, abs=0.25)  # of 10 pairs three quarters are assumed


def test_an_earlier_picture_on_which_a_network_errs_alike_corrects_the_later_one():
    pairs, scores = made_pairs(3000, blur=1.5, alike=0.7)
    found = find(pairs, scores)
    known = {}
    for name, correlation in (("measured", found.correlation), ("none", 0)):
        assumed = dataclasses.replace(found, correlation=correlation)
        report = history_quality.measure(scores, assumed, COUNTS, ERRORS).set_index("known")["log_loss"]
        known[name] = report["both pictures, record before"], report["picture, record before"]
    assert known["measured"][0] < known["measured"][1] - 0.02
    assert known["measured"][0] < known["none"][0] - 0.02


def test_the_ranking_uses_both_pictures_and_the_record_before():
    pairs, scores = made_pairs(600)
    found = find(pairs, scores)
    alone = ranking.rank(scores, COUNTS, ERRORS, 0.5).set_index("image_id")
    ranked = ranking.rank(scores, COUNTS, ERRORS, 0.5, None, found).set_index("image_id")
    without = ~ranked.index.isin(found.table["image_id"])
    assert ranked[without].drop(columns="rank").equals(alone[without].drop(columns="rank"))
    right = [(each["counted"] == each["recorded"])[~without].mean() for each in (ranked, alone)]
    assert right[0] > right[1] + 0.15
    assert ranked.sort_values("rank")["p_wrong"].is_monotonic_decreasing
    assert ranked["p_wrong"].between(0, 1).all()


def test_what_is_said_of_any_two_records_is_what_is_said_of_these():
    pairs, scores = made_pairs(300)
    found = find(pairs, scores).with_errors(PairErrors(carried=0.3))
    probabilities = scores[[f"p_{count}" for count in range(6)]].to_numpy(np.float64)
    labels = ranking.labels_of(scores, COUNTS)
    places, _, wrong = found.update(scores["image_id"], probabilities, labels, ERRORS)
    every = found.wrong_of_any(scores["image_id"], probabilities, ERRORS)
    rows = found.locate(scores["image_id"])[places]
    assert every[rows, found.table["label_before"].to_numpy()[rows], labels[places]] == pytest.approx(wrong)


def test_the_report_says_what_each_thing_that_is_known_adds():
    pairs, scores = made_pairs(1000, blur=1.5)
    report = history_quality.measure(scores, find(pairs, scores), COUNTS, ERRORS).set_index("known")
    assert report.index.tolist() == ["picture", *history_quality.WAYS]
    assert set(report["num_images"]) == set(report["num_bins"]) == {500}
    accuracy, log_loss = report["accuracy"], report["log_loss"]
    assert accuracy["record before"] > accuracy["picture"]
    assert accuracy["picture, record before"] > accuracy["record before"]
    assert log_loss["both pictures"] < log_loss["picture"]
    assert log_loss["picture, record before"] < log_loss["picture"]
    both = report.loc["both pictures, record before"]
    assert both["accuracy_change"] == pytest.approx(both["accuracy"] - accuracy["picture"])
    assert 0 < both["accuracy_change_low"] < both["accuracy_change"] < both["accuracy_change_high"]
    assert (report["accuracy_low"] < accuracy).all()
