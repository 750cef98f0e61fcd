"""The page of a search: what it says of whatever the trials are, its figures, and that text stays text."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest
from test_report import CRUEL, Read
from test_tables import printed

from bincount.data.snapshots import Snapshot
from bincount.reporting import search_figures
from bincount.reporting.search_figures import Objective
from bincount.settings import Job, TrainConfig, TuneConfig
from bincount.training.run_folder import Trained
from bincount.tuning import pages
from bincount.tuning.finalists import Candidate, Findings, Gain
from bincount.tuning.search import Search

LEARNING_RATES = [0.003, 0.0011, 0.09, 0.0005, 0.02, 0.004]
STATES = ["complete", "complete", "failed", "complete", "pruned", "complete"]
SCALES = {"training.learning_rate": "log", "training.batch_size": "choice", "training.head": "choice"}


def table(**columns: list) -> pd.DataFrame:
    complete = [state == "complete" for state in STATES]
    return pd.DataFrame(
        {
            "number": range(6),
            "state": STATES,
            "training.learning_rate": LEARNING_RATES,
            "training.batch_size": [64, 32, 128, 64, 20, 32],
            "training.head": ["linear", "mlp", "mlp", "linear", "linear", "mlp"],
            "log_loss": [1.4 - 0.01 * n if is_complete else None for n, is_complete in enumerate(complete)],
            "accuracy": [0.4 + 0.02 * n if is_complete else None for n, is_complete in enumerate(complete)],
            "epochs": [3, 3, 1, 3, 2, 3],
            "seconds": [10.0, 11, 2, 10, 7, 12],
            "reason": ["", "", "the loss was not a number", "", "", ""],
        }
        | columns
    )


def gain(score: str, given: float, best: float, half: float) -> Gain:
    change = best - given if score == "accuracy" else given - best
    return Gain(
        score=score,
        given=given,
        winner=best,
        gain=change,
        low=change - half,
        high=change + half,
        num_seeds=2,
        num_images=1234,
        num_bins=900,
    )


def candidate(number: int, scores: dict, row: int) -> Candidate:
    values = {name: table()[name].tolist()[row] for name in SCALES}
    return Candidate(number=number, values=values, seeds=(0, 1), scores=scores)


BEST = candidate(5, {"log_loss": (1.34, 1.36), "accuracy": (0.48, 0.5)}, 5)
GIVEN = candidate(0, {"log_loss": (1.4, 1.41), "accuracy": (0.41, 0.42)}, 0)
FOUND = Findings(
    objective=("log_loss",),
    candidates=(BEST, GIVEN),
    val=(gain("log_loss", 1.405, 1.35, 0.02), gain("accuracy", 0.415, 0.49, 0.03)),
    test=(gain("log_loss", 1.42, 1.39, 0.05), gain("accuracy", 0.4, 0.43, 0.04)),
)
UNCHANGED = Findings(objective=("log_loss",), candidates=(GIVEN, BEST))


class MadeSearch(Search):
    """A search whose trials are a table."""

    def __init__(self, folder: Path, made: pd.DataFrame, source: str = "s3://aft-vbi-pds", **tuning):
        from bincount.settings import DataConfig
        from bincount.tuning.space import Range, Space

        self.job = Job(
            data=DataConfig(source=source),
            training=TrainConfig(),
            tuning=TuneConfig(**{"trials": 6} | tuning),
            workspace=folder,
        )
        parameters = {"training.learning_rate": Range(low=1e-4, high=0.1, log=True), "training.batch_size": (32, 64)}
        self.space = Space(parameters=parameters | {"training.head": ("linear", "mlp")})
        self.folder = folder / "tuning" / "0123456789ab-fedcba987654"
        self.made = made

    name = property(lambda self: self.folder.name)
    journal = property(lambda self: None if self.job.tuning.storage else self.folder / "journal.log")

    @property
    def study(self):
        return search_figures._study(self.made, SCALES, [Objective("log_loss", "log loss")], CURVES)

    def table(self) -> pd.DataFrame:
        return self.made.copy()


CURVES = {0: {1: 1.6, 2: 1.5, 3: 1.45}, 4: {1: 1.9, 2: 1.8}}


def page_of(folder: Path, findings: Findings = FOUND, made: pd.DataFrame | None = None, **settings) -> str:
    search = MadeSearch(folder, table() if made is None else made, **settings)
    return pages.write(search, findings, "12.0 min of 1 h").read_text(encoding="utf-8")


def figures_of(page: str) -> list[dict]:
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1]
    return json.loads(data)["figures"]


def test_the_page_names_the_winner_its_gain_on_val_and_on_the_test_and_every_trial(tmp_path):
    read = Read(page_of(tmp_path))

    assert "Trial 5 is significantly better than the given settings: log loss 1.350 against 1.405" in read.text
    assert ["log loss on test", "1.420", "1.390", "+0.030", "-0.020 to +0.080", "not significant"] in read.rows
    assert ["accuracy on val", "41.5 %", "49.0 %", "+7.5 points", "+4.5 to +10.5", "significant"] in read.rows
    assert ["learning rate", "0.003", "0.004"] in read.rows
    assert ["5", "winner", "2 seeds", "1.350 ± 0.014", "49.0 ± 1.4 %", "0.004", "32", "mlp"] in read.rows
    trials = [row for row in read.rows if row[0].isdecimal() and row[1].split()[0] in search_figures.STATES]
    assert [row[:4] for row in trials] == [
        ["0", "complete given", "1.400", "0.003"],
        ["1", "complete", "1.390", "0.0011"],
        ["2", "failed", "", "0.09"],
        ["3", "complete", "1.370", "0.0005"],
        ["4", "pruned", "", "0.02"],
        ["5", "complete winner", "1.350", "0.004"],
    ]
    assert trials[2][-1] == "the loss was not a number"
    assert f"optuna-dashboard {tmp_path}/tuning/0123456789ab-fedcba987654/journal.log" in read.text


def test_where_the_given_settings_win_the_page_says_so_and_shows_no_gain(tmp_path):
    read = Read(page_of(tmp_path, UNCHANGED))

    assert "The given settings stay: the finalist has no better log loss on val" in read.text
    assert "Gain over the given settings" not in read.text
    assert "On the test" not in read.text


def test_the_page_loads_nothing_and_names_outside_stay_text(tmp_path):
    made = table(reason=[CRUEL] * 6, **{"training.head": [CRUEL, "mlp"] * 3})
    page = page_of(tmp_path, made=made, source=f"/photos/{CRUEL}")

    read = Read(page)
    assert read.tags["img"] == 0
    assert read.tags["script"] == 3  # the figures' numbers, Plotly and the page's own
    assert [value for name, value in read.attributes if name in ("src", "href") and not value.startswith("#")] == []
    assert "default-src 'none'" in page
    assert "unsafe-eval" not in page
    assert CRUEL in read.text.replace("\n", " ") or CRUEL.split("\u2028")[0] in read.text


def test_the_figures_are_optunas_with_the_given_settings_in_them(tmp_path):
    figures = {figure["title"]: figure for figure in figures_of(page_of(tmp_path))}

    assert list(figures) == [
        "History",
        "Importance",
        "Curves",
        "Parallel coordinates",
        "Slice: learning rate",
        "Slice: batch size",
        "Slice: head",
    ]
    drawn = search_figures.draw(table(), SCALES, [Objective("log_loss", "log loss")], CURVES)
    by_title = {each.title: each.figure for each in drawn}
    assert list(by_title["History"].data[0].y) == pytest.approx([1.4, 1.39, 1.37, 1.35])
    assert list(by_title["History"].data[1].name.split()) == ["best", "so", "far"]
    assert set(by_title["Slice: learning rate"].data[0].x) == {0.003, 0.0011, 0.0005, 0.004}  # of complete trials
    assert list(by_title["Slice: head"].layout.xaxis.categoryarray) == ["linear", "mlp"]
    assert [line.meta["goodness"] for line in by_title["Parallel coordinates"].data] == pytest.approx(
        [0, 1 / 3, 2 / 3, 1]
    )
    assert {trace.name: trace.line.dash for trace in by_title["Curves"].data} == {
        "trial 0, complete": None,
        "trial 4, pruned": "dot",
    }


def test_the_curves_are_those_of_the_objective_by_the_share_of_the_training():
    objective = Objective("accuracy", "accuracy, %", True, 100, "val accuracy, %")

    drawn = search_figures.draw(table(), SCALES, [objective], {0: {5: 0.3, 10: 0.41}, 3: {10: 0.4}}, num_steps=10)

    curves = next(each for each in drawn if each.title == "Curves")
    assert {trace.name: (list(trace.x), list(trace.y)) for trace in curves.figure.data} == {
        "trial 0, complete": ([50, 100], pytest.approx([30, 41])),
        "trial 3, complete": ([100], pytest.approx([40])),
    }
    assert curves.figure.layout.xaxis.title.text == "share of the training, %"
    assert curves.figure.layout.yaxis.title.text == "val accuracy, %"
    assert curves.caption.startswith("Val accuracy after each epoch. ")


@pytest.mark.parametrize(("objective", "name"), [("log_loss", "val loss"), ("accuracy", "val accuracy, %")])
def test_the_pages_curves_are_named_by_the_objective(tmp_path, objective, name):
    page = page_of(tmp_path, FOUND.model_copy(update={"objective": (objective,)}), objective=(objective,))

    curves = next(figure for figure in figures_of(page) if figure["title"] == "Curves")
    assert curves["layout"]["yaxis"]["title"]["text"] == name


def test_a_winner_that_is_worse_on_the_test_is_no_success(tmp_path):
    worse = FOUND.model_copy(update={"test": (gain("log_loss", 1.3, 1.42, 0.05),)})

    page = page_of(tmp_path, worse)

    assert 'class="head worse"' in page
    assert 'class="head better"' in page_of(tmp_path)
    read = Read(page)
    assert "on the test it is significantly worse than the given settings" in read.text
    assert ["log loss on test", "1.300", "1.420", "-0.120", "-0.170 to -0.070", "significantly worse"] in read.rows


def test_the_page_says_what_flatters_the_gain_and_shows_the_score_by_which_a_trial_became_a_finalist(tmp_path):
    lucky = FOUND.model_copy(update={"candidates": (BEST.model_copy(update={"first": {"log_loss": 1.2}}), GIVEN)})

    assert "named as the best of 2 by these trainings on val" in Read(page_of(tmp_path, lucky)).text
    assert pages.finalists(lucky)[pages.IN_SEARCH].tolist() == ["1.200", ""]
    alone = Read(page_of(tmp_path, FOUND.model_copy(update={"is_flattered": True})))
    assert "the gain is flattered, on the test too" in alone.text


def test_several_objectives_have_a_front_and_the_first_decides_elsewhere(tmp_path):
    findings = FOUND.model_copy(update={"objective": ("accuracy", "log_loss")})
    page = page_of(tmp_path, findings, objective=("accuracy", "log_loss"))

    titles = [figure["title"] for figure in figures_of(page)]
    assert titles[:2] == ["History", "Pareto front: accuracy, % and log loss"]
    objectives = [Objective("accuracy", "accuracy, %", True, 100), Objective("log_loss", "log loss")]
    front = search_figures.draw(table(), SCALES, objectives)[1].figure
    assert {trace.name: len(trace.x) for trace in front.data} == {"other trials": 3, "on the front": 1}
    assert list(front.data[1].x) == pytest.approx([50.0])


def test_a_search_without_a_complete_trial_has_a_page_without_figures(tmp_path):
    nothing = table(state=["failed"] * 6, log_loss=[None] * 6, accuracy=[None] * 6)

    page = page_of(tmp_path, UNCHANGED, made=nothing)

    assert len(page) < 100_000  # Plotly's script is left out
    assert Read(page).tags["script"] == 1


def test_trials_without_variety_have_the_figures_that_mean_something():
    alike = table()[:2].assign(**{name: table()[name][0] for name in SCALES})

    drawn = search_figures.draw(alike, SCALES, [Objective("log_loss", "log loss")])

    assert [each.title for each in drawn] == ["History"]


def test_the_terminal_shows_the_best_trials_first_within_80_columns(tmp_path):
    shown = pages.of_search(MadeSearch(tmp_path, table()), FOUND, "12.0 min of 1 h")

    lines = printed(shown)
    assert max(map(len, lines)) <= 80
    assert lines[0] == "Trials, the best 4 of 6"
    assert [line.split()[0] for line in lines[3:7]] == ["5", "3", "1", "0"]
    assert "4 complete, 1 pruned, 1 failed" in "\n".join(lines)
    assert list(shown) == [
        "Trials, the best 4 of 6",
        "Finalists, means over seeds on val",
        "Winner against the given settings",
        "Search",
        "Result",
        "Next",
    ]
    assert shown["Result"][""].tolist() == [FOUND.headline(), FOUND.about_test()]


def test_the_page_in_prefect_has_lists_and_no_wide_table(tmp_path):
    text = pages.as_markdown(MadeSearch(tmp_path, table()), FOUND, "12.0 min of 1 h")

    assert text.startswith("## Trial 5 is significantly better than the given settings")
    assert "- **trial 5:** 2 seeds; log loss 1.350 ± 0.014; accuracy 49.0 ± 1.4 %; learning rate 0.004" in text
    assert "- **accuracy on test:** 40.0 % before, 43.0 % now: +3.0 points (-1.0 to +7.0), not significant" in text
    assert "\n|" not in text


def test_mlflow_gets_the_winners_scores_and_its_gains():
    assert pages.as_metrics(FOUND) == pytest.approx(
        {
            "best/val_log_loss": 1.35,
            "best/val_accuracy": 0.49,
            "gain/val_log_loss": 0.055,
            "gain/val_accuracy": 0.075,
            "gain/test_log_loss": 0.03,
            "gain/test_accuracy": 0.03,
        }
    )


def test_figures_of_a_real_search_have_its_trials(tmp_path):
    from synthetic_training import IMAGES, QUICK, dataset

    snapshot: Snapshot = dataset(tmp_path, train=6, val=3)[0]
    job = Job(images=IMAGES, training=QUICK, tuning=TuneConfig(trials=5), workspace=tmp_path)
    search = Search.open(job, snapshot)
    while trial := search.ask():
        loss = 1.0 + trial.job.training.learning_rate
        search.report(trial, [{"epoch": 1, "val_loss": loss, "val_accuracy": 0.5, "seconds": 1.0}])
        search.complete(trial, Trained(tmp_path, 1, 3, 0.5, loss, 1.0, 1.0, val_log_loss=loss))

    titles = [drawn.title for drawn in pages.figures(search, UNCHANGED)]

    assert titles[:4] == ["History", "Importance", "Curves", "Parallel coordinates"]
    assert "Slice: learning rate" in titles
    assert pages.count_states(search.table()) == "5 complete"
