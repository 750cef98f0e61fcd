"""How good a ranking is said to be, from records that are made wrong on purpose."""

import numpy as np
import pandas as pd
import pytest
from made_pairs import made_pairs, records_of
from made_scores import COUNTS, made_scores

from bincount.evaluation import audit_quality, earlier
from bincount.evaluation.joint import PairErrors
from bincount.evaluation.record_errors import RecordErrors
from bincount.problem import Classes
from bincount.reporting import tables

ASSUMED = RecordErrors.prior(0.05)
ANYTHING, BY_ONE = RecordErrors(rate=0.05), RecordErrors(rate=0.05, shares=(1.0,))


def figures(scores, made=ANYTHING, outputs=COUNTS, **options):
    return audit_quality.measure(scores, outputs, ASSUMED, made, **options).set_index(["score", "measure"])


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    monkeypatch.setattr(audit_quality, "DRAWS", 60)
    monkeypatch.setattr(audit_quality, "RESAMPLES", 30)
    monkeypatch.setattr(audit_quality, "DRAWS_EACH", 4)


def test_a_network_that_sees_finds_wrong_records_at_several_times_chance():
    found = figures(made_scores(2000, sharpness=4))
    for name in ("p_wrong", "p_recorded", "odds", "margin"):
        assert found.loc[(name, "precision at 50"), "value"] > 0.25
        assert found.loc[(name, "precision at 50"), "lift_low"] > 4
        assert found.loc[(name, "recall at 5 %"), "lift_rarest_low"] > 2
    first = found.loc[("p_wrong", "precision at 50")]
    assert first["lift"] == pytest.approx(first["value"] / 0.05)


def test_a_network_that_sees_nothing_finds_them_by_chance():
    scores = made_scores(3000)
    scores["recorded"] = np.random.default_rng(5).choice(COUNTS.names, 3000)
    scores[scores.filter(like="p_").columns] = np.float32(1 / 6)
    found = figures(scores)
    assert found.loc[("p_wrong", "precision at 100"), "value"] == pytest.approx(0.05, abs=0.015)
    assert found.loc[("p_wrong", "recall at 10 %"), "value"] == pytest.approx(0.1, abs=0.015)


def test_the_posterior_beats_the_simple_scores_where_records_err_as_it_assumes():
    found = figures(made_scores(3000), BY_ONE)
    for name in ("p_recorded", "odds", "margin", "expected_difference"):
        assert found.loc[("p_wrong", "recall at 10 %"), "value"] > found.loc[(name, "recall at 10 %"), "high"]


def test_a_record_off_by_one_is_harder_to_find():
    scores = made_scores(2000, sharpness=1)
    # a network that confuses neighbouring counts
    blur = np.exp(-np.abs(np.subtract.outer(np.arange(6), np.arange(6))))
    probabilities = blur[scores["recorded"].astype(int)]
    scores[[f"p_{count}" for count in range(6)]] = (probabilities / probabilities.sum(axis=1, keepdims=True)).astype(
        "f4"
    )
    measure = ("p_wrong", "recall at 5 %")
    assert figures(scores, BY_ONE).loc[measure, "value"] <= figures(scores, ANYTHING).loc[measure, "value"]


def test_the_rule_without_pictures_finds_rare_records():
    scores = made_scores(2000)
    scores["recorded"] = ["0"] * 1000 + ["1"] * 1000  # every other record is a wrong one
    found = figures(scores)
    assert found.loc[("rarest record", "precision at 10"), "value"] > 0.95
    assert found.loc[("rarest record", "precision at 10"), "lift_rarest"] == 1


def test_figures_do_not_depend_on_the_order_of_the_bins_and_follow_from_the_seed():
    scores = made_scores(300, images_a_bin=2)
    first = figures(scores, seed=3)
    pd.testing.assert_frame_equal(first, figures(scores.sample(frac=1, random_state=1), seed=3))
    assert not first.equals(figures(scores, seed=4))


def test_precision_among_more_bins_than_there_are_is_left_out():
    found = figures(made_scores(60))
    assert ("p_wrong", "precision at 50") in found.index
    assert ("p_wrong", "precision at 100") not in found.index
    assert ("p_wrong", "recall at 1 %") in found.index


def test_classes_without_an_order_have_no_distance():
    kinds = Classes.parse("good,bad,ugly")
    found = figures(made_scores(500, kinds), outputs=kinds)
    assert "expected_difference" not in found.index.get_level_values("score")
    assert found.loc[("p_wrong", "recall at 10 %"), "value"] > 0.3


def test_the_interval_holds_the_figure_of_all_bins_nearly_always():
    population = made_scores(30_000, images_a_bin=2, seed=9, sharpness=2)
    audits = [population[start : start + 600].reset_index(drop=True) for start in range(0, 30_000, 600)]
    found = [figures(audit).loc[("p_wrong", "recall at 5 %")] for audit in audits[:25]]
    truth = np.mean([each["value"] for each in found])
    held = np.mean([each["low"] <= truth <= each["high"] for each in found])
    assert held >= 0.8
    assert np.mean([each["high"] - each["low"] for each in found]) < 0.2


def test_images_of_one_bin_count_as_one_for_the_interval(monkeypatch):
    for name, number in (("DRAWS", 200), ("RESAMPLES", 100), ("DRAWS_EACH", 8)):
        monkeypatch.setattr(audit_quality, name, number)
    alone = made_scores(300)
    copies = pd.concat([alone.assign(image_id=alone["image_id"] + f"-{copy}") for copy in range(8)])
    as_one, as_many = figures(copies), figures(copies.assign(group=copies["image_id"]))
    figure = ("p_wrong", "recall at 10 %")
    width = [table.loc[figure, "high"] - table.loc[figure, "low"] for table in (as_one, as_many)]
    assert width[0] > 1.2 * width[1]


def test_of_many_bins_each_audit_has_a_part(monkeypatch):
    monkeypatch.setattr(audit_quality, "MOST_BINS", 500)
    monkeypatch.setattr(audit_quality, "POOL", 1000)
    found = figures(made_scores(3000))
    small = figures(made_scores(500))
    figure = ("p_wrong", "precision at 50")
    assert found.loc[figure, "value"] == pytest.approx(small.loc[figure, "value"], abs=0.12)


def test_the_figures_are_shown_with_their_intervals_and_lifts():
    measured = audit_quality.measure(made_scores(400, sharpness=3), COUNTS, ASSUMED, ANYTHING)
    shown = tables.audit_quality(measured)
    assert shown[""].tolist() == audit_quality.measures()
    first = measured.iloc[0]
    text = f"{100 * first['value']:.1f} % ({100 * first['low']:.1f} to {100 * first['high']:.1f})"
    assert shown["found"].iloc[0] == text
    assert shown["over random"].iloc[0].startswith(f"{first['lift']:.1f} times (")
    every = tables.rankings(measured)
    names = [name for score, name in tables.RANKINGS.items() if score != audit_quality.ALONE]
    assert every["ranked by"].tolist() == names
    assert every.loc[0, "precision at 10"] == text


# --- with earlier pictures --------------------------------------------------------------------------------------------

RECALL = "recall at 5 %"


@pytest.fixture(scope="module")
def with_earlier():
    pairs, scores = made_pairs(3000, blur=1.5)
    return scores, earlier.find(pairs, records_of(pairs), scores, COUNTS)


@pytest.mark.parametrize("carried", [0, 0.5, 1])
def test_earlier_pictures_help_whether_errors_are_carried_over_or_not(with_earlier, carried):
    scores, found = with_earlier
    of_pairs = PairErrors(carried=carried, not_made=0)
    recalls = figures(scores, ASSUMED, earlier=found, made_of_pairs=of_pairs)["value"]
    assert recalls["p_wrong", RECALL] > recalls["picture alone", RECALL]


def test_with_the_record_before_as_a_witness_of_its_own_fewer_errors_are_found_that_were_carried_over(with_earlier):
    scores, found = with_earlier
    independent = found.with_errors(PairErrors(carried=0, not_made=0))
    recalls = [
        figures(scores, ASSUMED, earlier=each, made_of_pairs=PairErrors(carried=1, not_made=0))["value"]
        for each in (found, independent)
    ]
    assert recalls[0]["p_wrong", RECALL] > recalls[1]["p_wrong", RECALL]


def test_a_record_is_not_given_away_by_a_change_that_never_occurs(with_earlier):
    """Errors by one often say that nothing was moved, which no pair says: a naive figure counts that as found."""
    scores, found = with_earlier
    naive = PairErrors(carried=0, not_made=0, as_changes=False)
    easy = figures(scores, BY_ONE, earlier=found.with_errors(naive), made_of_pairs=naive)["value"]
    fair = figures(scores, BY_ONE, earlier=found, made_of_pairs=PairErrors(carried=0, not_made=0))["value"]
    assert easy["p_wrong", RECALL] > fair["p_wrong", RECALL] + 0.1


def test_wrong_records_are_changes_as_they_occur_or_off_by_as_much_as_the_record_before(with_earlier):
    scores, found = with_earlier
    seen = {}
    for carried in (0, 1):
        trials = audit_quality.Trials(scores, COUNTS, ASSUMED, ANYTHING, found, PairErrors(carried=carried, not_made=0))
        rows = np.flatnonzero(found.locate(scores["image_id"]) >= 0)
        true, is_wrong = scores["recorded"].astype(int).to_numpy()[rows], np.ones(len(rows), bool)
        rng = np.random.default_rng(0)
        records = (true + rng.integers(1, 6, len(true))) % 6
        before, after = trials._pairs.make_wrong(rows, true, records, is_wrong, 0.05, rng)
        true_before = found.table["label_before"].to_numpy()
        assert (after != true).all()
        seen[carried] = before, after, before - true_before, after - true
    before, after, *_ = seen[0]
    within = (before > 0) & (before < 5)  # else one change alone occurs, and that is the true one
    assert np.mean(np.abs(after - before)[within] == 1) > 0.9
    _, _, off_before, off_after = seen[1]
    kept = off_before == off_after
    assert 0.5 < kept.mean() < 1  # a record that would be below 0 or above 5 is none
    assert (off_before[~kept] == 0).mean() > 0.9


def test_without_earlier_pictures_nothing_is_said_of_them():
    assert "picture alone" not in figures(made_scores(300)).index.get_level_values("score")


# --- without labels ---------------------------------------------------------------------------------------------------


def test_the_promise_is_kept_where_records_are_right():
    found = audit_quality.promise(made_scores(5000), COUNTS, ASSUMED)
    assert found.gap.low < 0 < found.gap.high
    assert found.wrong_share.low < 0.02
    assert found.promised.value == pytest.approx(found.recorded.value + found.gap.value)


def test_the_gap_says_how_many_records_are_wrong():
    scores = made_scores(20_000, errors=RecordErrors.prior(0.12), sharpness=3)
    found = audit_quality.promise(scores, COUNTS, ASSUMED)
    assert found.gap.low > 0
    assert found.wrong_share.low < 0.12 < found.wrong_share.high
    assert found.wrong_share.high - found.wrong_share.low < 0.05
    share = found.wrong_share
    assert f"explain it if {100 * share.value:.1f} % ({100 * share.low:.1f} % to " in found.describe()
    assert "assumes that the probabilities are calibrated" in found.describe()


def test_a_promise_no_better_than_chance_says_nothing_of_wrong_records():
    scores = made_scores(100).assign(**{f"p_{count}": np.float32(1 / 6) for count in range(6)})
    found = audit_quality.promise(scores, COUNTS, RecordErrors(rate=0.05))
    assert found.promised.value == pytest.approx(1 / 6)
    assert found.wrong_share is None
    assert "Wrong records alone" not in found.describe()
