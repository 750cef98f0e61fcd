"""How a search ends: which trainings decide, who wins, what the gain is worth, and when the test is touched."""

from pathlib import Path

import numpy as np
import pytest
import synthetic_training
import torch

from bincount import settings_file
from bincount.data import snapshots
from bincount.data.snapshots import Snapshot
from bincount.errors import TrainingFailed
from bincount.problem import Classes
from bincount.settings import DataConfig, Job, TrainConfig, TuneConfig
from bincount.threshold import Threshold
from bincount.training.calibration import keep_threshold
from bincount.training.model import build, save
from bincount.training.run_folder import Trained
from bincount.training.spec import ModelSpec
from bincount.tuning import finalists, pages, winner
from bincount.tuning.finalists import Findings, Result
from bincount.tuning.search import Search, Trial
from bincount.workspace import Workspace

CLASSES = Classes.parse("0..2")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> tuple[Path, Snapshot]:
    folder = tmp_path_factory.mktemp("drawn")
    return folder, synthetic_training.dataset(folder, train=6, val=60, test=60)[0]


def job_in(folder: Path, **tuning) -> Job:
    return Job(
        images=synthetic_training.IMAGES,
        training=synthetic_training.QUICK.model_copy(update={"seed": 5}),
        tuning=TuneConfig(**{"trials": 5, "seeds_per_trial": 3} | tuning),
        workspace=folder,
    )


def trained(folder: Path, p_of_0: float, classes: Classes = CLASSES) -> Trained:
    """A training whose network says of every picture that it has the first class with this probability."""
    spec = ModelSpec.make(synthetic_training.IMAGES, synthetic_training.QUICK, classes)
    model = build(spec)
    with torch.no_grad():
        *_, weight, bias = model.parameters()
        weight.zero_()
        others = [(1 - p_of_0) / (len(classes) - 1)] * (len(classes) - 1)
        bias.copy_(torch.tensor([p_of_0, *others]).log())
    save(folder / "model", model, spec)
    return Trained(folder, 1, 3, val_accuracy=1 / 3, val_loss=1.0, seconds=1.0, images_per_second=1.0)


def results(folder: Path, networks: dict[int, list[float | None]]) -> list[Result]:
    """Trainings of trials by number, one for each seed; None failed. A p of 1/3 has the least log loss here.

    The first seed is that of the trial itself. Where a trial has fewer than others, the limit left no time for them.
    """
    job = job_in(folder, seeds_per_trial=max(map(len, networks.values())))
    return [
        (
            Trial(number, job, {"training.epochs": number}),
            job.training.model_copy(update={"seed": 5 + seed}),
            None if p is None else trained(folder / f"runs/{number}-{seed}", p),
        )
        for number, of_seeds in networks.items()
        for seed, p in enumerate(of_seeds)
    ]


def judge(data, tmp_path, networks: dict, objective=("log_loss",)) -> tuple[Findings, list[Result]]:
    made = results(tmp_path, networks)
    return finalists.judge(made, data[1], objective, "cpu"), made


def test_the_winner_has_the_best_mean_over_fresh_seeds_not_the_best_training(data, tmp_path):
    findings, _ = judge(data, tmp_path, {0: [0.9, 0.6, 0.6], 1: [0.34, 0.34, 0.9], 2: [0.34, 0.4, 0.41]})

    assert [each.number for each in findings.candidates] == [2, 0, 1]
    assert findings.winner.seeds == (6, 7)
    assert findings.winner.scores["log_loss"][0] == pytest.approx(-(np.log(0.4) + 2 * np.log(0.3)) / 3, abs=1e-4)
    assert [gain.score for gain in findings.val] == ["log_loss", "accuracy", "rmse"]
    assert findings.val[0].gain == pytest.approx(
        findings.given.mean("log_loss") - findings.winner.mean("log_loss"), abs=1e-9
    )
    assert findings.headline().startswith("Trial 2 is significantly better than the given settings: log loss 1.1")
    assert "on val over 2 fresh seeds" in findings.headline()


def test_the_seed_that_made_a_finalist_is_shown_and_does_not_count(data, tmp_path):
    lucky, _ = judge(data, tmp_path / "a", {0: [0.6, 0.5, 0.5], 1: [0.34, 0.5, 0.51]})
    plain, _ = judge(data, tmp_path / "b", {0: [0.6, 0.5, 0.5], 1: [0.6, 0.5, 0.51]})

    assert lucky.winner.number == 0  # the mean over all three would name trial 1
    assert [each.scores for each in lucky.candidates] == [each.scores for each in plain.candidates]
    assert lucky.candidates[1].first["log_loss"] < plain.candidates[1].first["log_loss"]
    shown = pages.finalists(lucky)
    assert shown["seeds"].tolist() == ["2 seeds", "2 seeds"]
    assert shown[pages.IN_SEARCH].tolist() == ["1.243", "1.099"]


def test_where_no_finalist_is_better_the_given_settings_win_and_the_test_is_left_alone(data, tmp_path):
    findings, made = judge(data, tmp_path, {0: [0.34] * 3, 1: [0.34] * 3, 2: [0.6] * 3})

    assert findings.winner.number == 0
    assert findings.headline() == (
        "The given settings stay: none of the 2 finalists has a better log loss on val over 2 fresh seeds."
    )
    assert finalists.measure_test(findings, made, data[1], Workspace(root=tmp_path), "cpu") == findings
    assert not (tmp_path / "evaluations").exists()


def test_a_finalist_with_a_failed_training_comes_after_those_without(data, tmp_path):
    findings, _ = judge(data, tmp_path, {0: [0.5] * 3, 1: [0.34, 0.34, None], 2: [0.4] * 3})

    assert [each.number for each in findings.candidates] == [2, 0, 1]
    assert findings.winner.seeds == findings.given.seeds == (6, 7)
    assert findings.candidates[-1].failed == (7,)
    assert pages.finalists(findings)["seeds"].tolist() == ["2 seeds", "2 seeds", "1 seed, 1 failed"]

    unsteady, _ = judge(data, tmp_path / "b", {0: [0.5] * 3, 1: [0.34, None, None]})
    assert unsteady.headline() == (
        "The given settings stay: the finalist has no better log loss on val over 2 fresh seeds without a failed "
        "training."
    )
    assert pages.finalists(unsteady)["log loss"].tolist()[1] == ""


def test_given_settings_of_which_a_training_failed_are_compared_by_the_seeds_that_both_have(data, tmp_path):
    findings, _ = judge(data, tmp_path / "a", {0: [0.51, 0.51, None], 1: [0.91] * 3})

    assert findings.winner.number == 0
    assert "without a failed training" not in findings.headline()

    findings, _ = judge(data, tmp_path / "b", {0: [0.51, None, 0.51], 1: [0.4, 0.9, 0.4], 2: [0.4, 0.4, 0.6]})
    assert [each.number for each in findings.candidates] == [1, 0, 2]  # by seed 7
    assert {each.seeds for each in findings.candidates} == {(7,)}
    assert findings.val[0].gain > 0

    findings, _ = judge(data, tmp_path / "c", {0: [0.4, None, 0.4], 1: [0.5, 0.5, None]})
    assert findings.is_flattered  # no other seed is there of both
    assert findings.winner.number == 0


def test_where_time_ran_out_only_the_seeds_count_that_all_have(data, tmp_path):
    lucky = {0: [0.6, 0.6, 0.6], 1: [0.5, 0.34], 2: [0.5, 0.4, 0.9]}
    findings, _ = judge(data, tmp_path / "a", lucky)

    assert [each.number for each in findings.candidates] == [1, 2, 0]
    assert {each.seeds for each in findings.candidates} == {(6,)}
    assert findings.val[0].num_seeds == 1
    assert findings.details() == [
        "The limit was reached before one training of the finalists and the given settings: only the seeds count that "
        "all of them have. The same command with more --hours or --budget trains the rest."
    ]
    assert findings.details()[0] in findings.summary()
    assert findings.headline().endswith("is not known from one seed; raise --hours or --budget.")
    assert pages.finalists(findings)["seeds"][0] == "1 seed, 1 not trained"

    findings, _ = judge(data, tmp_path / "b", {0: [0.6, 0.6], 1: [0.5], 2: [0.4, 0.34]})
    assert findings.is_flattered  # of trial 1 there is no other seed
    assert {each.seeds for each in findings.candidates} == {(5,)}


def test_without_the_given_settings_there_is_a_winner_and_no_gain(data, tmp_path):
    findings, made = judge(data, tmp_path, {0: [None] * 3, 1: [0.4] * 3})

    assert findings.winner.number == 1
    assert findings.val == ()
    assert findings.headline().endswith("is not known, since they have no training to compare with.")
    assert finalists.measure_test(findings, made, data[1], Workspace(root=tmp_path), "cpu") == findings


def test_where_all_trainings_fail_there_is_no_winner(data, tmp_path):
    with pytest.raises(TrainingFailed, match="every training of the finalists failed"):
        judge(data, tmp_path, {0: [None], 1: [None]})


def test_of_one_fresh_seed_nothing_is_said_to_be_beyond_noise(data, tmp_path):
    findings, _ = judge(data, tmp_path, {0: [0.9, 0.9], 1: [0.9, 0.34]})

    assert findings.val[0].low > 0
    assert "on val with one fresh seed. Whether it is significant is not known" in findings.headline()
    assert findings.headline().endswith("is not known from one seed; raise --seeds-per-trial.")


def test_where_each_has_its_first_seed_alone_the_gain_is_said_to_be_flattered(data, tmp_path):
    findings, _ = judge(data, tmp_path, {0: [0.9], 1: [0.34]})

    assert findings.winner.number == 1
    assert findings.headline().endswith(
        "on val with one seed. The gain is flattered, since that seed made the trial a finalist, and whether it is "
        "significant is not known from one seed; raise --seeds-per-trial."
    )


def test_another_first_objective_may_have_another_winner(data, tmp_path):
    networks = {0: [0.2] * 3, 1: [0.34] * 3, 2: [0.3] * 3}

    assert judge(data, tmp_path / "a", networks)[0].winner.number == 1
    by_rmse, _ = judge(data, tmp_path / "b", networks, ("rmse", "log_loss"))
    assert by_rmse.winner.number != 1  # never predicting the lowest class is less wrong in items
    assert by_rmse.objective == ("rmse", "log_loss")


def test_the_test_says_what_the_same_trainings_gain_there_and_is_predicted_once(data, tmp_path):
    findings, made = judge(data, tmp_path, {0: [0.6] * 3, 1: [0.35, 0.35, 0.36], 2: [0.5] * 3})
    workspace = Workspace(root=tmp_path)

    tested = finalists.measure_test(findings, made, data[1], workspace, "cpu")

    assert tested.candidates == findings.candidates
    assert tested.val == findings.val
    assert tested.test[0].gain == pytest.approx(tested.val[0].gain)  # these networks are the same on every picture
    assert tested.about_test().startswith("On the test, by which nothing was chosen: log loss 1.100 against")
    assert {gain.num_seeds for gain in (*tested.val, *tested.test)} == {2}
    kept = sorted(tmp_path.glob("evaluations/*/predictions.parquet"))
    assert len(kept) == 4  # two fresh seeds each; trial 2 was not tested, nor were first seeds
    times = [path.stat().st_mtime_ns for path in kept]
    assert finalists.measure_test(findings, made, data[1], workspace, "cpu") == tested
    assert [path.stat().st_mtime_ns for path in kept] == times


def test_finalists_are_scored_by_what_they_predict_where_a_threshold_decides(tmp_path):
    counted, _ = synthetic_training.dataset(tmp_path, train=6, val=12, test=12)
    rows, boxes = counted.read(), Classes.parse("intact,damaged")
    rows["label"] = rows["label"].clip(upper=1)
    rows["class_name"] = np.array(boxes.names, object)[rows["label"]]
    snapshot = snapshots.freeze(rows, boxes, "drawn", tmp_path)
    made = trained(tmp_path / "run", 0.7, boxes)
    trial = results(tmp_path / "others", {1: [0.7]})[0][0]
    images = {split: finalists._images(snapshot, split) for split in ("val", "test")}

    def accuracies() -> list[float]:
        predicted = {
            "val": finalists._predict_val(trial, made, snapshot, "cpu"),
            "test": finalists._predict_test(trial, made, snapshot, Workspace(root=tmp_path), "cpu"),
        }
        return [finalists._scores(images[split], each, ["accuracy"])["accuracy"] for split, each in predicted.items()]

    intact = [(each.labels == 0).mean() for each in images.values()]
    assert accuracies() == pytest.approx(intact)
    keep_threshold(made.checkpoint, Threshold(positive=1, value=0.2, miss_cost=4))
    assert accuracies() == pytest.approx([1 - share for share in intact])


def test_a_winner_that_is_worse_on_the_test_beyond_noise_is_said_to_be(data, tmp_path):
    findings, _ = judge(data, tmp_path, {0: [0.6, 0.6, 0.61], 1: [0.6, 0.4, 0.41]})
    loss = findings.val[0].model_copy(update={"gain": -0.2, "low": -0.3, "high": -0.1})

    tested = findings.model_copy(update={"test": (loss,)})

    assert tested.headline().startswith(
        "Trial 1 is the best on val, but on the test it is significantly worse than the given settings. It had log loss"
    )
    assert tested.about_test().endswith("gain -0.200 (-0.300 to -0.100), significantly worse.")
    assert pages.gains(tested)["verdict"].tolist()[-1] == "significantly worse"


def searched(data, folder: Path, losses: list[float | None], **tuning) -> Search:
    """A search whose trials had these val losses; None failed."""
    search = Search.open(job_in(folder, trials=len(losses), **tuning), data[1])
    for loss in losses:
        trial = search.ask()
        if loss is None:
            search.fail(trial, "the loss was not a number")
            continue
        search.complete(trial, Trained(folder, 1, 3, 0.5, loss, 1.0, 1.0, val_log_loss=loss))
    return search


def test_the_given_settings_and_the_best_three_are_trained_with_the_same_seeds_the_first_seeds_first(data, tmp_path):
    planned = finalists.plan(searched(data, tmp_path, [1.5, 1.2, 1.4, 1.1, 1.3]))

    assert [(trial.number, training.seed) for trial, training in planned] == [
        (number, seed) for seed in (5, 6, 7) for number in (0, 3, 1, 4)
    ]
    for trial, training in planned:
        assert training.model_copy(update={"seed": 5}) == trial.job.training


def test_given_settings_that_are_among_the_best_take_no_finalists_place(data, tmp_path):
    planned = finalists.plan(searched(data, tmp_path, [1.0, 1.2, 1.4, 1.1, 1.3], seeds_per_trial=1))

    assert [trial.number for trial, _ in planned] == [0, 3, 1, 4]


def test_given_settings_that_failed_are_not_trained_again(data, tmp_path):
    planned = finalists.plan(searched(data, tmp_path, [None, 1.2, None], seeds_per_trial=2))

    assert [trial.number for trial, _ in planned] == [1, 1]


def test_the_seeds_of_models_of_several_networks_do_not_overlap():
    training = TrainConfig(members=4, seed=10)

    every = [member.seed for number in range(3) for member in finalists._with_seed(training, number).each_member()]

    assert every == list(range(10, 22))


def test_a_search_without_a_complete_trial_says_so(data, tmp_path):
    with pytest.raises(TrainingFailed, match=r"came to its end"):
        finalists.plan(searched(data, tmp_path, [None, None]))


def test_the_winners_file_is_a_whole_settings_file_and_the_workspaces_last_where_it_is_better(tmp_path):
    job = job_in(tmp_path).replace(training=TrainConfig(optimizer="sgd", learning_rate=0.02))
    folder = tmp_path / "tuning" / "a-search"

    path = winner.write(folder, job, "The winner of the search a-search. " + "It is better. " * 20, is_better=True)

    assert path == folder / "best.toml"
    assert settings_file.read(path) == job
    assert settings_file.read(path).training.weight_decay == 1e-4  # what follows from the optimizer
    assert winner.latest(tmp_path) == tmp_path / "tuning" / "best.toml"
    assert path.read_bytes() == winner.latest(tmp_path).read_bytes()
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# The winner of the search a-search.")
    assert max(map(len, lines)) <= 120
    assert 'device = "cpu"' not in path.read_text()  # auto stays auto


def test_a_winner_that_is_not_better_leaves_the_workspaces_last_as_it_is(tmp_path):
    first, second, third = (job_in(tmp_path).replace(training=TrainConfig(epochs=each)) for each in (2, 3, 4))
    winner.write(tmp_path / "tuning" / "first", first, "The first.", is_better=True)
    winner.write(tmp_path / "tuning" / "second", second, "The second.", is_better=True)

    winner.write(tmp_path / "tuning" / "third", third, "The third.", is_better=False)

    assert settings_file.read(winner.latest(tmp_path)) == second
    assert settings_file.read(tmp_path / "tuning" / "first" / "best.toml") == first
    assert settings_file.read(tmp_path / "tuning" / "third" / "best.toml") == third


def test_a_search_keeps_the_settings_that_it_was_given_with_paths_that_hold_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    job = job_in(tmp_path).replace(
        data=DataConfig(source="bins"), tuning=TuneConfig(space=Path("space.toml"), trials=7)
    )

    kept = settings_file.read(winner.write_given(tmp_path / "a-search", job))

    assert kept.data.source == str(tmp_path / "bins")
    assert kept.tuning == TuneConfig(space=tmp_path / "space.toml", trials=7)
