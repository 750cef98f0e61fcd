"""What a network of changes adds to two pictures whose counts another network gave."""

import numpy as np
import pandas as pd
import pytest
import synthetic_questions
from made_pairs import made_pairs, records_of
from made_scores import COUNTS

from bincount.errors import SettingsError
from bincount.evaluation import change_evidence, earlier, history_quality, joint, ranking
from bincount.evaluation.record_errors import RecordErrors
from bincount.settings import TrainConfig
from bincount.training import model as models
from bincount.training.questions import Questions
from bincount.training.spec import ModelSpec

ERRORS = RecordErrors.prior(0.05)
NAMES = ("-1", "0", "1")


def made(num: int = 2400, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame, earlier.EarlierPictures]:
    pairs, scores = made_pairs(num, seed=seed, blur=2.0)
    return pairs, scores, earlier.find(pairs, records_of(pairs), scores, COUNTS)


def witness(pairs: pd.DataFrame, right: float, says: float | None = None) -> pd.DataFrame:
    """Answers of a network that sees a change of -1 or 1 as it was with the probability `right`, whatever the counts.

    It answers by Bayes' rule, as if it were right with the probability `says`.
    """
    says = right if says is None else says
    test = pairs[pairs["split"] == "test"]
    seen = np.where(np.random.default_rng(1).random(len(test)) < right, test["change"], -test["change"])
    picks = (test["change"] == -1).mean()
    weights = np.stack(
        [picks * np.where(seen == -1, says, 1 - says), (1 - picks) * np.where(seen == 1, says, 1 - says)]
    )
    answers = np.insert((weights / weights.sum(axis=0)).T, 1, 0, axis=1)
    return pd.DataFrame(answers, index=test["after"], columns=NAMES)


def test_a_change_that_is_seen_makes_the_count_what_bayes_rule_says():
    """3 items before for sure; half of all changes are picks; the network has seen a stow, and is right on 3 of 4."""
    transition = np.zeros((6, 6))
    transition[np.arange(6), np.abs(np.arange(6) - 1)] = 0.5
    transition[np.arange(6), 5 - np.abs(4 - np.arange(6))] += 0.5
    even = np.full((1, 6), 1 / 6)
    without = np.full((1, 2), joint.NONE)
    model = joint.PairModel.of(COUNTS, transition, ERRORS, joint.PairErrors(0, 0, as_changes=False))
    ratios = np.array([[0.25, 1.0, 0.75]]) / np.array([0.5, 1.0, 0.5])
    found = joint.infer(model, np.eye(6)[[3]], even, even, without, ratios)
    assert found.after[0] == pytest.approx([0, 0, 0.25, 0, 0.75, 0], abs=1e-9)


def test_a_witness_of_its_own_counts_in_full_and_lowers_the_log_loss_to_that_of_bayes_rule():
    pairs, scores, found = made()
    evidence = change_evidence.add(found, witness(pairs, 0.9), scores, ERRORS)
    assert evidence.num_pairs == len(found)
    assert min(evidence.powers) >= 0.75
    report = history_quality.measure(scores, evidence.earlier, COUNTS, ERRORS, than=history_quality.BOTH)
    report = report.set_index("known")
    with_change = report.loc["both pictures, record before, change"]
    assert with_change["log_loss_change_high"] < -0.05
    assert with_change["accuracy_change_low"] > 0.05
    assert pd.isna(report.loc[history_quality.BOTH, "log_loss_change"])
    assert report.loc["both pictures, change", "log_loss"] < report.loc["both pictures", "log_loss"] - 0.05


def test_a_network_that_says_the_same_of_all_pictures_adds_nothing():
    _, scores, found = made()
    same = pd.DataFrame([[0.6, 0.1, 0.3]], index=found.table["image_id"], columns=NAMES)
    added = change_evidence.add(found, same, scores, ERRORS).earlier
    assert added.change_ratios == pytest.approx(np.ones((len(found), 3)))
    report = history_quality.measure(scores, added, COUNTS, ERRORS).set_index("known")["log_loss"]
    assert report["both pictures, record before, change"] == pytest.approx(report[history_quality.BOTH])


def test_a_network_that_is_too_sure_of_itself_is_believed_less_and_one_that_guesses_is_not():
    pairs, scores, found = made()
    powers = {
        name: change_evidence.add(found, answers, scores, ERRORS).powers
        for name, answers in {
            "too sure": witness(pairs, 0.75, says=0.99),
            "guesses": witness(pairs, 0.5, says=0.99),
        }.items()
    }
    assert set(powers["too sure"]) == {0.25}  # the odds are 3, and not 99: a power of log 3 / log 99 = 0.24
    assert set(powers["guesses"]) == {0.0}


def test_the_records_of_a_bin_do_not_choose_its_own_power():
    pairs, scores, found = made()
    answers = witness(pairs, 0.75, says=0.99)
    powers = change_evidence.add(found, answers, scores, ERRORS).powers
    fold = scores["group"].factorize(sort=True)[0] % change_evidence.FOLDS == 2
    shuffled = scores.assign(recorded=np.where(fold, np.random.default_rng(0).permutation(scores["recorded"]), "0"))
    shuffled = shuffled.assign(recorded=np.where(fold, shuffled["recorded"], scores["recorded"]))
    other = change_evidence.add(found, answers, shuffled, ERRORS).powers
    assert other[2] == powers[2]


def test_pairs_that_the_network_may_not_be_asked_about_are_inferred_as_without_it():
    pairs, scores, found = made()
    answers = witness(pairs, 0.9).iloc[::2]
    added = change_evidence.add(found, answers, scores, ERRORS).earlier
    asked = added.table["image_id"].isin(answers.index).to_numpy()
    assert (added.change_ratios[~asked] == 1).all()
    assert (added.change_ratios[asked] != 1).any()
    alone, ranked = (
        ranking.rank(scores, COUNTS, ERRORS, 0.5, None, each).set_index("image_id").sort_index()
        for each in (found, added)
    )
    same = ~ranked.index.isin(answers.index)
    assert ranked.loc[same, "p_wrong"].equals(alone.loc[same, "p_wrong"])
    assert (ranked.loc[~same, "p_wrong"] != alone.loc[~same, "p_wrong"]).any()


def test_few_pairs_are_not_enough_to_know_how_far_to_believe_a_network():
    pairs, scores, found = made()
    assert change_evidence.add(found, witness(pairs, 0.9).head(99), scores, ERRORS) is None
    assert change_evidence.add(found, witness(pairs, 0.9).head(100), scores, ERRORS).num_pairs == 100


def change_network(task: str, classes) -> tuple:
    training = TrainConfig(task=task, model="small", weights="none")
    spec = ModelSpec.make(synthetic_questions.IMAGES, training, classes)
    return models.build(spec), spec


def test_a_network_is_asked_about_the_picture_after_with_the_one_before_as_its_reference(tmp_path):
    snapshot, pack = synthetic_questions.dataset(tmp_path, "change", train=6)
    network, spec = change_network("change", synthetic_questions.CHANGES)
    rows = snapshot.read()
    pairs = pd.DataFrame(
        {
            "after": rows["image_id"],
            "sha256_after": rows["sha256"],
            "sha256_before": [each[0] for each in rows["references"]],
        }
    )
    answers = change_evidence.ask(pairs, pack, network, spec)
    assert answers.columns.tolist() == list(NAMES)
    places = np.stack([pack.locate(pairs["sha256_after"]), pack.locate(pairs["sha256_before"])], axis=1)
    expected = models.probabilities(network, spec, pack.images, Questions(places, np.zeros(len(rows), np.int64)))
    assert answers.to_numpy() == pytest.approx(expected)
    turned = pairs.rename(columns={"sha256_after": "sha256_before", "sha256_before": "sha256_after"})
    mirrored = change_evidence.ask(turned, pack, network, spec)
    assert mirrored.to_numpy()[:, ::-1] == pytest.approx(answers.to_numpy(), abs=1e-5)


def test_a_network_of_another_task_is_not_asked_about_changes(tmp_path):
    _, pack = synthetic_questions.dataset(tmp_path, "object", train=6)
    with pytest.raises(SettingsError, match="train --task change"):
        change_evidence.ask(pd.DataFrame(), pack, *change_network("object", synthetic_questions.NO_YES))
