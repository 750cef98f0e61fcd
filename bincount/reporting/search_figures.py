"""Optuna's figures of a search, for its page: history, importance, parallel coordinates, slices, curves and front.

They are made from the table of trials instead of from Optuna's study: so that the given settings are in them too, where
the study has no value of theirs that lies outside the space, and names are short.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import optuna
import pandas as pd
from optuna import visualization
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState
from plotly.graph_objects import Figure

STATES = {
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
    "running": TrialState.RUNNING,
}
LEGEND = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}
SLICE = "Slice: "  # how titles of slices begin
FEWEST_TRIALS = 4  # complete ones, for importances to mean something

Scale = Literal["linear", "log", "choice"]


@dataclass(frozen=True)
class Objective:
    """A score that trials are judged by: its column in the table, the name in figures, and which way is better."""

    column: str
    name: str
    more_is_better: bool = False
    factor: float = 1.0  # 100 where the figures show percent
    curve: str = "val loss"  # what was measured after each epoch


@dataclass(frozen=True)
class Drawn:
    """A figure with its title and what it shows, in a sentence; wide ones need the width of the page."""

    title: str
    caption: str
    figure: Figure
    wide: bool = False

    @property
    def is_slice(self) -> bool:
        """Whether it shows one setting against the score; these stand together."""
        return self.title.startswith(SLICE)


def draw(
    trials: pd.DataFrame,
    scales: Mapping[str, Scale],
    objectives: Sequence[Objective],
    curves: Mapping[int, Mapping[int, float]] = {},
    num_steps: int = 1,
) -> list[Drawn]:
    """Draw the figures that the trials are enough for; none where no trial is complete.

    trials has a row a trial, in order of number, with the columns number, state, those of scales, which are the
    searched settings, and those of the objectives. curves has the values that a trial had on its way, by its number and
    by step: the share of its epochs that was done, in num_steps.
    """
    if not (trials["state"] == "complete").any():
        return []
    first = objectives[0]
    study = _study(trials, scales, objectives[:1], curves)
    complete = trials[trials["state"] == "complete"]
    varied = [_short(name) for name in scales if complete[name].nunique() > 1]
    narrow = [_history(study, first)]
    if len(objectives) > 1:
        narrow += _fronts(_study(trials, scales, objectives, curves), objectives)
    if len(complete) >= FEWEST_TRIALS and varied:
        narrow.append(_importances(study, varied, first))
    if curves:
        narrow.append(_curves(study, first, num_steps))
    if len(narrow) % 2:  # two stand side by side
        narrow[0] = replace(narrow[0], wide=True)
    parallel = [_parallel(study, varied, first)] if varied else []
    return [*narrow, *parallel, *(_slice(study, name, first) for name in varied)]


def _history(study: optuna.Study, first: Objective) -> Drawn:
    figure = visualization.plot_optimization_history(study, target_name=first.name)
    for trace in figure.data:
        trace.name = {"Best Value": "best so far", first.name: "trial"}.get(trace.name, trace.name)
        trace.line.shape = "hv"
    figure.update_layout(xaxis={"title": "trial"}, legend=LEGEND)
    return Drawn("History", f"{_capital(first.name)} of each complete trial, and the best so far.", figure)


def _importances(study: optuna.Study, params: list[str], first: Objective) -> Drawn:
    figure = visualization.plot_param_importances(study, params=params, target_name=first.name)
    figure.update_layout(xaxis={"title": "share", "rangemode": "tozero"}, yaxis={"title": None}, showlegend=False)
    figure.update_traces(hovertemplate="%{y}: %{x:.2f}<extra></extra>")
    caption = (
        f"How much each setting decides whether a trial is among the best by {first.name} (PED-ANOVA), as shares of "
        "one. From few trials it is a hint, no measurement."
    )
    return Drawn("Importance", caption, figure)


def _parallel(study: optuna.Study, params: list[str], first: Objective) -> Drawn:
    figure = visualization.plot_parallel_coordinate(study, params=params, target_name=first.name)
    lines = [trace for trace in figure.data if trace.mode == "lines"]
    for trace, place in zip(lines, _places([trace.y[0] for trace in lines], first), strict=True):
        # The page draws the lines in colours that are legible on its ground, by how good a trial is.
        trace.meta = {"goodness": place}
    figure.data = sorted(lines, key=lambda trace: trace.meta["goodness"])
    caption = f"Each line is a complete trial: its {first.name}, and its settings. The stronger the line, the better."
    return Drawn("Parallel coordinates", caption, figure, wide=True)


def _curves(study: optuna.Study, first: Objective, num_steps: int) -> Drawn:
    figure = visualization.plot_intermediate_values(study)
    figure.update_layout(xaxis={"title": "share of the training, %"}, yaxis={"title": first.curve})
    trials = study.get_trials(deepcopy=False)
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    places = dict(
        zip((each.number for each in complete), _places([each.value for each in complete], first), strict=True)
    )
    for trace in figure.data:
        trial = trials[int(trace.name.removeprefix("Trial"))]
        state = next(name for name, each in STATES.items() if each == trial.state)
        trace.name = f"trial {trial.number}, {state}"
        trace.mode = "lines"
        trace.x = [100 * step / num_steps for step in trace.x]
        trace.y = [first.factor * value for value in trace.y]
        if state == "complete":
            trace.meta = {"goodness": places[trial.number]}
        else:
            trace.line.dash = "dot"
    score, _, _ = first.curve.partition(",")
    caption = (
        f"{_capital(score)} after each epoch{', before calibration' * (first.column == 'log_loss')}. Trials may have "
        f"different numbers of epochs. The stronger the line, the better the {first.name}; dotted are trials that were "
        "stopped early, or run."
    )
    return Drawn("Curves", caption, figure)


def _slice(study: optuna.Study, name: str, first: Objective) -> Drawn:
    figure = visualization.plot_slice(study, params=[name], target_name=first.name)
    for trace in figure.data:
        trace.x = [_unquoted(value) for value in trace.x]
        trace.marker.colorbar = {"title": "trial"}
        trace.hovertemplate = f"{name} %{{x}}<br>{first.name} %{{y:.4g}}<br>trial %{{marker.color}}<extra></extra>"
    if figure.layout.xaxis.categoryarray:
        figure.layout.xaxis.categoryarray = [_unquoted(value) for value in figure.layout.xaxis.categoryarray]
    if figure.layout.xaxis.type == "log":
        figure.update_xaxes(dtick=1, tickformat="~g")
    return Drawn(f"{SLICE}{name}", "", figure)


def _fronts(study: optuna.Study, objectives: Sequence[Objective]) -> list[Drawn]:
    """Draw each pair of objectives; what is on the front is decided by all of them."""
    drawn = []
    for x, y in itertools.combinations(range(len(objectives)), 2):
        names = [objectives[x].name, objectives[y].name]
        figure = visualization.plot_pareto_front(
            study, target_names=names, targets=lambda trial, x=x, y=y: (trial.values[x], trial.values[y])
        )
        for trace, label in zip(figure.data, ("other trials", "on the front"), strict=True):
            trace.update(name=label, showlegend=True, marker={"colorscale": None, "colorbar": None, "color": None})
            trace.hovertemplate = f"{names[0]} %{{x:.4g}}<br>{names[1]} %{{y:.4g}}<extra>%{{fullData.name}}</extra>"
            trace.text = None
        figure.update_layout(legend=LEGEND)
        caption = "No complete trial is better in every objective than those on the front."
        drawn.append(Drawn(f"Pareto front: {names[0]} and {names[1]}", caption, figure))
    return drawn


def _study(
    trials: pd.DataFrame,
    scales: Mapping[str, Scale],
    objectives: Sequence[Objective],
    curves: Mapping[int, Mapping[int, float]],
) -> optuna.Study:
    """Make a study in memory of the table."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # Optuna says that it has made a study
    try:
        study = optuna.create_study(
            directions=["maximize" if each.more_is_better else "minimize" for each in objectives]
        )
    finally:
        optuna.logging.set_verbosity(verbosity)
    distributions = {name: _distribution(trials[name].dropna().tolist(), scale) for name, scale in scales.items()}
    study.add_trials([_trial(row, distributions, objectives, curves) for row in trials.to_dict("records")])
    return study


def _trial(
    row: Mapping[str, Any],
    distributions: Mapping[str, BaseDistribution],
    objectives: Sequence[Objective],
    curves: Mapping[int, Mapping[int, float]],
) -> FrozenTrial:
    has_value = [name for name in distributions if not pd.isna(row[name])]
    is_complete = row["state"] == "complete"
    return optuna.trial.create_trial(
        state=STATES[row["state"]],
        values=[row[each.column] * each.factor for each in objectives] if is_complete else None,
        params={_short(name): row[name] for name in has_value},
        distributions={_short(name): distributions[name] for name in has_value},
        intermediate_values=dict(curves.get(row["number"], {})),
    )


def _distribution(values: Sequence[Any], scale: Scale) -> BaseDistribution:
    """Return a distribution that has these values in it."""
    if scale == "choice" or not values:
        unique = list(dict.fromkeys(values)) or [None]
        are_numbers = all(isinstance(value, int | float) for value in unique)
        return CategoricalDistribution(sorted(unique, key=None if are_numbers else str))
    low, high = min(values), max(values)
    kind = IntDistribution if all(isinstance(value, int) for value in values) else FloatDistribution
    return kind(low, high, log=scale == "log" and low > 0)  # a given value may be 0, such as a weight decay


def _places(scores: Sequence[float], first: Objective) -> list[float]:
    """Return the place of each score among them, from 0, the worst, to 1: one that is far off dims no others."""
    ranks = pd.Series(scores).rank(ascending=first.more_is_better)
    return ((ranks - 1) / max(len(scores) - 1, 1)).tolist()


def _short(name: str) -> str:
    return name.rpartition(".")[2].replace("_", " ")


def _unquoted(value: Any) -> Any:
    """Undo repr, by which Optuna names choices."""
    return value[1:-1] if isinstance(value, str) and value[:1] in "'\"" else value


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
