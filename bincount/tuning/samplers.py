"""The algorithms of a search, made of settings: what suggests the next trial, and what stops one early.

Options that change what is suggested are named here, also where they are Optuna's defaults, which differ between its
versions.
"""

import warnings
from typing import TYPE_CHECKING

import numpy as np

from bincount.errors import SettingsError
from bincount.mistakes import suggest
from bincount.settings import TuneConfig

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler

CLASSES = {"tpe": "TPESampler", "random": "RandomSampler", "gp": "GPSampler", "nsgaii": "NSGAIISampler"}
FIRST_EPOCH_THAT_STOPS = 2  # for the median: the loss after the first says little of the last


def options(tuning: TuneConfig) -> dict[str, bool | int | float | str | None]:
    """Return the options of the job's sampler, the given ones included. Raises SettingsError for unknown ones."""
    startup, several = tuning.startup_trials, len(tuning.objective) > 1
    known: dict[str, dict[str, bool | int | float | None]] = {
        # Of one objective the settings are sampled together; with several, Optuna samples each apart.
        "tpe": {"n_ei_candidates": 24, "multivariate": not several, "group": False, "constant_liar": True},
        "random": {},
        "gp": {"deterministic_objective": False},
        "nsgaii": {
            "population_size": max(2, startup),
            "crossover_prob": 0.9,
            "swapping_prob": 0.5,
            "mutation_prob": None,
        },
    }
    defaults = known[tuning.sampler]
    for name, value in tuning.sampler_options.items():
        if name not in defaults:
            remedy = {"seed": "; give --seed", "n_startup_trials": "; give --startup-trials"}.get(name)
            raise SettingsError(
                f"--sampler-options: {tuning.sampler} has no option {name}{remedy or suggest(name, defaults)}; "
                f"it takes {', '.join(defaults) or 'no options'}"
            )
        kind = float if defaults[name] is None else type(defaults[name])
        if type(value) is not kind and not (kind is float and type(value) is int):
            words = {bool: "true or false", int: "a whole number", float: "a number"}
            raise SettingsError(f"--sampler-options: {name} takes {words[kind]}, not {value!r}")
    first = {"n_startup_trials": startup} if tuning.sampler in ("tpe", "gp") else {}
    return first | defaults | tuning.sampler_options


def make_sampler(tuning: TuneConfig, seed: int, number: int) -> "BaseSampler":
    """Make the sampler of one trial, whose random numbers follow from the seed and the trial's number alone.

    Raises SettingsError for options that cannot be.
    """
    from optuna import samplers

    state = int(np.random.SeedSequence((seed, number)).generate_state(1)[0])
    given = options(tuning)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some options are said to be experimental
            made = getattr(samplers, CLASSES[tuning.sampler])
            quiet = {"warn_independent_sampling": False} if tuning.sampler == "gp" else {}
            return made(seed=state, **given, **quiet)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"--sampler-options: {error}") from None


def make_pruner(tuning: TuneConfig, steps: int) -> "BasePruner":
    """Make the pruner; steps is the last at which a trial reports, from which Hyperband makes its brackets."""
    from optuna import pruners

    if tuning.pruner == "median":
        # How many trials and epochs there must be before, Search.report counts for either pruner.
        return pruners.MedianPruner(n_startup_trials=1, n_warmup_steps=0, interval_steps=1, n_min_trials=1)
    if tuning.pruner == "hyperband":
        return pruners.HyperbandPruner(min_resource=1, max_resource=max(1, steps), reduction_factor=3)
    return pruners.NopPruner()
