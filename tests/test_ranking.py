"""The order in which bins are to be checked."""

import numpy as np
import pandas as pd
import pytest
from made_scores import COUNTS, made_scores

from bincount.evaluation import ranking
from bincount.evaluation.ranking import rank
from bincount.evaluation.record_errors import RecordErrors
from bincount.problem import Classes

KINDS = Classes.parse("good,bad,ugly")


def by_hand(probabilities, recorded, likelihood) -> float:
    """The posterior by counting: what share of all the ways to this record has another true class."""
    ways = [probability * likelihood[true][recorded] for true, probability in enumerate(probabilities)]
    return sum(way for true, way in enumerate(ways) if true != recorded) / sum(ways)


@pytest.mark.parametrize("outputs", [COUNTS, KINDS, Classes.parse("0..10")], ids=str)
def test_the_probability_of_a_wrong_record_is_that_of_bayes_rule(outputs):
    scores, errors = made_scores(50, outputs), RecordErrors.prior(0.08)
    ranked = rank(scores, outputs, errors, 0.5)
    likelihood = errors.likelihood(outputs)
    for row in ranked.to_dict("records"):
        probabilities = [row[f"p_{name}"] for name in outputs.names]
        expected = by_hand(probabilities, outputs.names.index(row["recorded"]), likelihood)
        assert row["p_wrong"] == pytest.approx(expected, rel=1e-6)


def test_of_bins_said_to_be_wrong_with_some_probability_so_many_are():
    errors = RecordErrors.prior(0.1)
    scores = made_scores(60_000, errors=errors)
    ranked = rank(scores, COUNTS, errors, 0.5)
    is_wrong = ranked["recorded"] != ranked["true"].astype(str)
    for low, high in ((0, 0.05), (0.05, 0.3), (0.3, 0.7), (0.7, 1)):
        group = ranked["p_wrong"].between(low, high)
        assert group.sum() > 300
        assert is_wrong[group].mean() == pytest.approx(ranked.loc[group, "p_wrong"].mean(), abs=0.03)


def test_wrong_records_come_first_at_several_times_their_share():
    scores = made_scores(4000, errors=RecordErrors(rate=0.05), sharpness=4)
    ranked = rank(scores, COUNTS, RecordErrors.prior(0.05), 0.5).sort_values("rank")
    is_wrong = ranked["recorded"] != ranked["true"].astype(str)
    assert is_wrong.head(100).mean() > 6 * is_wrong.mean()


def test_the_answer_is_to_look_where_the_network_is_unsure():
    scores = pd.DataFrame({"image_id": ["a", "b"], "group": ["a", "b"], "recorded": ["2", "2"]})
    scores[[f"p_{count}" for count in range(6)]] = [[0, 0, 0.2, 0.7, 0.1, 0], [0.3, 0.3, 0.4, 0, 0, 0]]

    ranked = rank(scores, COUNTS, RecordErrors.prior(0.05), 0.5).set_index("image_id")

    assert ranked["counted"].tolist() == ["3", "2"]
    assert ranked["answer"].tolist() == ["3", "look"]
    assert ranked["direction"].tolist() == ["more", "same"]
    assert ranked["rank"].tolist() == [1, 2]
    assert ranked["expected"].tolist() == pytest.approx([2.9, 1.1])
    assert ranked["p_recorded"].tolist() == pytest.approx([0.2, 0.4])
    assert ranked["odds"].tolist() == pytest.approx([3.5, 1])
    assert ranked["margin"].tolist() == pytest.approx([0.5, -0.1])
    assert ranked["expected_difference"].tolist() == pytest.approx([0.9, 0.9])


def test_the_picture_may_show_a_count_beyond_the_classes():
    outputs = Classes.parse("0..7")  # classes 0 to 5, and the extra counts 6 and 7
    scores = pd.DataFrame({"image_id": ["a", "b"], "group": ["a", "b"], "recorded": ["5", "7"]})
    scores[[f"p_{count}" for count in range(8)]] = [[0, 0, 0, 0, 0, 0.1, 0.2, 0.7], [0, 0, 0, 0, 0, 0.8, 0.1, 0.1]]

    ranked = rank(scores, outputs, RecordErrors.prior(0.05), 0.5)

    assert ranked["counted"].tolist() == ["7", "5"]
    assert ranked["direction"].tolist() == ["more", "fewer"]
    assert ranked["p_wrong"].between(0.01, 0.99).all()


def test_classes_without_an_order_have_no_direction_and_no_expected_count():
    ranked = rank(made_scores(20, KINDS), KINDS, RecordErrors.prior(0.05), 0.5)
    assert set(ranked["direction"]) == {""}
    assert ranked[["expected", "expected_difference"]].isna().all(axis=None)
    assert sorted(ranked["rank"]) == list(range(1, 21))


def test_bins_get_the_same_rank_in_whatever_order_they_stand():
    half = made_scores(100)
    scores = pd.concat([half, half.assign(image_id="9" + half["image_id"])], ignore_index=True)
    shuffled = scores.sample(frac=1, random_state=1)

    first = rank(scores, COUNTS, RecordErrors.prior(0.05), 0.5).set_index("image_id")
    second = rank(shuffled, COUNTS, RecordErrors.prior(0.05), 0.5).set_index("image_id")

    assert second["rank"].index.tolist() == shuffled["image_id"].tolist()
    pd.testing.assert_frame_equal(first, second.loc[first.index])
    twins = first["rank"].to_numpy().reshape(2, 100)
    assert (twins[1] == twins[0] + 1).all()  # of equal bins the smaller id


def test_a_record_that_the_network_finds_impossible_is_wrong():
    scores = pd.DataFrame({"image_id": ["a", "b"], "group": ["a", "b"], "recorded": ["0", "1"]})
    scores[[f"p_{count}" for count in range(6)]] = np.eye(6)[[5, 1]]
    ranked = rank(scores, COUNTS, RecordErrors.prior(0.05), 0.5)
    assert ranked["p_wrong"].tolist() == [1, 0]
    assert np.isfinite(ranked["odds"]).all()


def test_a_record_that_is_no_output_is_named():
    with pytest.raises(ValueError, match="the record 9 is none of the outputs 0, 1, 2, 3, 4, 5"):
        rank(made_scores(3).assign(recorded="9"), COUNTS, RecordErrors.prior(0.05), 0.5)


def test_no_bins_give_no_ranks():
    assert rank(made_scores(3).iloc[:0], COUNTS, RecordErrors.prior(0.05), 0.5)["rank"].tolist() == []


def test_the_simple_scores_are_cleanlabs():
    scores = made_scores(300)
    probabilities, labels = scores.filter(like="p_").to_numpy(float), ranking.labels_of(scores, COUNTS)
    found = ranking.compare(probabilities, labels, COUNTS)
    # Northcutt et al.: p[label], and p[label] - max of the others, as cleanlab.rank has them
    own = probabilities[np.arange(300), labels]
    others = np.where(np.eye(6, dtype=bool)[labels], 0, probabilities).max(axis=1)
    np.testing.assert_allclose(found["p_recorded"], own)
    np.testing.assert_allclose(found["margin"], others - own)
