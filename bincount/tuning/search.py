"""A search: the trials of a job with other settings, kept by Optuna so that a killed search goes on where it was.

    WORKSPACE/tuning/NAME/
        journal.log     Optuna's journal, which optuna-dashboard reads too; not with `--storage`
        clock.json      the time that was spent
        identity        digits in the name of the study, by which it is no other workspace's

The name follows from what decides the trials and their order: the snapshot, the given settings, the space, the
objective, the sampler and the pruner. It does not follow from how many trials there are, so that a search is extended
by running it again with more.

Suggestions and early stops are worked out on a copy of the study in memory, and written as one line each: a process
that is killed leaves a trial with all of its values, or none. Where one trial runs at a time, they follow from the
seed and the trials before alone, so that a search that was killed ends as one that was not.
"""

import hashlib
import json
import threading
import warnings
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from bincount.data.snapshots import Snapshot
from bincount.errors import SettingsError, mask_credentials
from bincount.problem import Classes
from bincount.settings import Job
from bincount.training.run_folder import Trained, folder_by_settings, read_history
from bincount.tuning.identity import JOURNAL, name_study
from bincount.tuning.samplers import FIRST_EPOCH_THAT_STOPS, make_pruner, make_sampler, options
from bincount.tuning.space import Space, Value, find_space
from bincount.tuning.storage import explain_silence, open_database, open_journal
from bincount.tuning.trial import Trial
from bincount.workspace import Workspace

if TYPE_CHECKING:
    import pandas as pd

DIRECTIONS = {
    "log_loss": "minimize",
    "accuracy": "maximize",
    "rmse": "minimize",
    "macro_f1": "maximize",
    "average_precision": "maximize",
}
CURVES = {"log_loss": "val_loss", **{name: f"val_{name}" for name in DIRECTIONS if name != "log_loss"}}  # in histories
STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
}
RUNG = "completed_rung_"  # how Optuna's names begin of what Hyperband notes with a trial

optuna.logging.set_verbosity(optuna.logging.WARNING)


def check(job: Job, classes: Classes | None = None) -> Space:
    """Return the space that a job searches; classes are by default those of its settings.

    Raises SettingsError where these settings cannot be searched.
    """
    tuning, classes = job.tuning, classes or job.data.class_set
    if len(set(tuning.objective)) < len(tuning.objective):
        raise SettingsError(f"--objective names a score twice: {', '.join(tuning.objective)}; name each once")
    if "rmse" in tuning.objective and not classes.ordered:
        raise SettingsError(
            "--objective rmse needs classes with an order; choose log_loss or accuracy, or add --ordered"
        )
    if "average_precision" in tuning.objective and len(classes) != 2:
        raise SettingsError(
            f"--objective average_precision is for two classes, and there are {len(classes)}; choose macro_f1"
        )
    if len(tuning.objective) > 1 and tuning.pruner != "none":
        raise SettingsError(
            "trials that are judged by several scores cannot be stopped early by one; leave --pruner out, or "
            "give one --objective"
        )
    if job.training.num_members > 1:
        raise SettingsError(
            f"a trial trains one network, not --members {job.training.num_members}; leave it out, and give it when you "
            "train the winner"
        )
    make_sampler(tuning, job.training.seed, 0)
    return find_space(job, classes)


def _one_at_a_time(method: Callable) -> Callable:
    @wraps(method)
    def locked(self: "Search", *args, **keywords) -> Any:
        with self._lock, explain_silence(self.job.tuning.storage):
            return method(self, *args, **keywords)

    return locked


class Search:
    """The trials of a job so far, and which come next. One process at a time has a search; its threads share it.

    job has the given settings, which are those of trial 0; folder is where the search is kept; study is Optuna's, and
    study_name tells the search from those of other workspaces.
    """

    def __init__(self, job: Job, space: Space, folder: Path, storage: BaseStorage) -> None:
        self.job, self.space, self.folder = job, space, folder
        self._storage, self._lock, self.study_name = storage, threading.RLock(), name_study(folder)
        self._distributions = space.distributions()
        self._num_steps = space.most_epochs(job)
        self._pruner = make_pruner(job.tuning, self._num_steps)
        self.study = self._open_study(self.study_name, storage, load_if_exists=True)

    @classmethod
    def open(cls, job: Job, snapshot: Snapshot) -> "Search":
        """Make the search of these settings, or go on with it.

        What `auto` stands for in job.training must have been put in its place, as trainings are named by it. Raises
        SettingsError; DatasetError where the journal is damaged; ServiceUnavailable where `storage` does not answer.
        """
        space = check(job, snapshot.classes)
        folder = Workspace(root=job.workspace).tuning / _name(job, space, snapshot)
        folder.mkdir(parents=True, exist_ok=True)
        url = job.tuning.storage
        return cls(job, space, folder, open_database(url) if url else open_journal(folder / JOURNAL))

    @property
    def name(self) -> str:
        """The name of the folder, which follows from the settings."""
        return self.folder.name

    @property
    def journal(self) -> Path | None:
        """The file that optuna-dashboard reads; None where the search is in a database."""
        return None if self.job.tuning.storage else self.folder / JOURNAL

    @_one_at_a_time
    def unfinished(self) -> list[Trial]:
        """Return the trials that are running, or were when the process was killed, by number.

        Before a killed one is resumed, report the epochs in its folder: it may have been about to be stopped.
        """
        return [self._trial(found) for found in self._trials() if found.state == TrialState.RUNNING]

    @_one_at_a_time
    def ask(self) -> Trial | None:
        """Return the next trial, which is running from now on; None when there are as many as `trials` says."""
        number = len(self._trials())
        if number >= self.job.tuning.trials:
            return None
        params, notes = self._suggest(number)
        asked = optuna.trial.create_trial(
            state=TrialState.RUNNING,
            params=params,
            distributions={name: self._distributions[name] for name in params},
            system_attrs=notes,
        )
        self.study.add_trial(asked)
        return self._trial(self._trials()[number])

    @_one_at_a_time
    def report(self, trial: Trial, history: list[dict[str, Any]]) -> bool:
        """Record the epochs of a trial so far, as history.json has them; return whether it is to be stopped early.

        An epoch is stored at the step that is its share of the trial's epochs, out of the most of any trial: what the
        learning rate is follows from that share, so that trials of 8 and of 15 epochs are compared alike.

        Epochs that were reported before may be in it, and are not counted twice. Not stopped early are trial 0, with
        which the others are compared, any trial before `startup_trials` are complete, and one whose last epoch is done.
        """
        trial_id, curve = self._id(trial.number), self._curve(trial, history)
        found = self._storage.get_trial(trial_id)
        if found.state.is_finished():
            return found.state == TrialState.PRUNED
        for step, value in curve.items():
            if step not in found.intermediate_values:
                self._storage.set_trial_intermediate_value(trial_id, step, value)
        seconds = sum(record["seconds"] for record in history)
        if seconds > found.user_attrs.get("seconds", 0):  # so that it is known of one that fails, too
            self._storage.set_trial_user_attr(trial_id, "seconds", seconds)
        if self.job.tuning.pruner == "none" or trial.number == 0 or not history:
            return False
        is_stopped = self._is_stopped(trial.number, curve)
        num_complete = sum(found.state == TrialState.COMPLETE for found in self._trials())
        first = FIRST_EPOCH_THAT_STOPS if self.job.tuning.pruner == "median" else 1
        is_between = first <= history[-1]["epoch"] < trial.job.training.epochs
        return is_stopped and is_between and num_complete >= self.job.tuning.startup_trials

    @_one_at_a_time
    def complete(self, trial: Trial, trained: Trained) -> None:
        """Record a trial's result, and those of its epochs that were not reported, as of a training found finished.

        A trial that has ended before stays as it is.
        """
        self.report(trial, read_history(trained.folder))
        scores = self.scores(trained)
        self._end(trial, TrialState.COMPLETE, list(scores.values()), epochs=trained.epochs, seconds=trained.seconds)

    @_one_at_a_time
    def prune(self, trial: Trial, history: list[dict[str, Any]]) -> None:
        """Record that a trial was stopped early; its value is that of its last epoch, by which samplers judge it."""
        self.report(trial, history)
        seconds = sum(record["seconds"] for record in history)
        last = history[-1][CURVES[self.job.tuning.objective[0]]]
        self._end(trial, TrialState.PRUNED, [last], epochs=len(history), seconds=seconds)

    @_one_at_a_time
    def fail(self, trial: Trial, reason: str) -> None:
        """Record that a trial failed, and why; the search goes on without it."""
        self._end(trial, TrialState.FAIL, None, reason=mask_credentials(reason))

    def scores(self, trained: Trained) -> dict[str, float]:
        """Return the scores of a training on val by the names of the objectives, the first first.

        They are those of the epoch whose weights are kept; log_loss is that of the calibrated probabilities.
        """
        log_loss = trained.val_loss if trained.val_log_loss is None else trained.val_log_loss
        measured = {"log_loss": lambda: log_loss, "accuracy": lambda: trained.val_accuracy}
        return {
            name: measured[name]()
            if name in measured
            else float(trained.history().loc[trained.best_epoch, CURVES[name]])
            for name in self.job.tuning.objective
        }

    @_one_at_a_time
    def table(self) -> "pd.DataFrame":
        """Return a row a trial.

        Columns: number, state (complete, pruned, failed or running), the searched settings by qualified name, the
        objectives (of complete trials), epochs, seconds (of training alone), reason (of a failure).
        """
        import pandas as pd

        objectives = self.job.tuning.objective
        rows = []
        for found in self._trials():
            is_complete = found.state == TrialState.COMPLETE
            values = found.values if is_complete else [None] * len(objectives)
            row = {"number": found.number, "state": STATES[found.state], **self._trial(found).values}
            row |= dict(zip(objectives, values, strict=True))
            row["epochs"] = found.user_attrs.get("epochs", len(found.intermediate_values))
            row |= {"seconds": found.user_attrs.get("seconds"), "reason": found.user_attrs.get("reason", "")}
            rows.append(row)
        columns = ["number", "state", *self.space.parameters, *objectives, "epochs", "seconds", "reason"]
        return pd.DataFrame(rows, columns=columns).astype({name: float for name in (*objectives, "seconds")})

    @_one_at_a_time
    def best(self, n: int) -> list[Trial]:
        """Return the n best complete trials by the first objective, the best first; ties go to the earlier.

        Of trials with the same settings only the first is among them.
        """
        sign = 1 if DIRECTIONS[self.job.tuning.objective[0]] == "minimize" else -1
        complete = [found for found in self._trials() if found.state == TrialState.COMPLETE]
        ranked = [self._trial(found) for found in sorted(complete, key=lambda found: sign * found.values[0])]
        first = {json.dumps(trial.values): trial for trial in reversed(ranked)}
        return [trial for trial in ranked if first[json.dumps(trial.values)] is trial][:n]

    @_one_at_a_time
    def front(self) -> list[Trial]:
        """Return the complete trials that no other one is better than in all objectives, by number."""
        return [self._trial(found) for found in sorted(self.study.best_trials, key=lambda found: found.number)]

    def _open_study(self, name: str, storage: BaseStorage, **options: Any) -> optuna.Study:
        objectives = self.job.tuning.objective
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # names of objectives are said to be experimental
            study = optuna.create_study(
                storage=storage,
                study_name=name,
                directions=[DIRECTIONS[name] for name in objectives],
                pruner=self._pruner,
                **options,
            )
            if study.metric_names != list(objectives):
                study.set_metric_names(list(objectives))
        return study

    def _trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def _trial(self, found: FrozenTrial) -> Trial:
        if found.number == 0:
            return Trial(0, self.job, self.space.given(self.job))
        values = {name: found.params[name] for name in self.space.parameters}
        return Trial(found.number, self.space.apply(self.job, values), values)

    def _suggest(self, number: int) -> tuple[dict[str, Value], dict[str, Any]]:
        """Return the values of the next trial, and what the sampler notes with it."""
        if number == 0:
            given = self.space.given(self.job)
            return {name: value for name, value in given.items() if _lies_in(self._distributions[name], value)}, {}
        sampler = make_sampler(self.job.tuning, self.job.training.seed, number)
        copy = self._copy([self._as_learned(found) for found in self._trials()], InMemoryStorage(), sampler)
        asked = copy.ask(self._distributions)
        noted = copy.get_trials(deepcopy=False)[number].system_attrs
        return {name: asked.params[name] for name in self._distributions}, dict(noted)

    def _as_learned(self, found: FrozenTrial) -> FrozenTrial:
        """Return a trial as samplers take it.

        They model the settings that all trials have. So they do not learn from trial 0 where one of its values lies
        outside the space: it takes part as a failed one.
        """
        if found.params.keys() == self._distributions.keys():
            return found
        return optuna.trial.create_trial(state=TrialState.FAIL)

    def _is_stopped(self, number: int, curve: dict[int, float]) -> bool:
        """Return whether the pruner stops a trial at its last step; write what it notes with the trial.

        All steps are gone through each time, as if none had been before: a process may have been killed between notes.
        What the pruner says of those before the last is void: other trials have come to their end since.
        """
        trials, memory = self._trials(), InMemoryStorage()
        notes = trials[number].system_attrs
        trials[number] = optuna.trial.create_trial(
            state=TrialState.RUNNING,
            params=trials[number].params,
            distributions=trials[number].distributions,
            system_attrs={name: value for name, value in notes.items() if not name.startswith(RUNG)},
        )
        copy = self._copy(trials, memory)
        trial_id = self._id(number, memory)
        is_stopped = False
        for step, value in curve.items():
            memory.set_trial_intermediate_value(trial_id, step, value)
            is_stopped = self._pruner.prune(copy, memory.get_trial(trial_id))
        for name, value in memory.get_trial(trial_id).system_attrs.items():
            if notes.get(name) != value:
                self._storage.set_trial_system_attr(self._id(number), name, value)
        return is_stopped

    def _curve(self, trial: Trial, history: list[dict[str, Any]]) -> dict[int, float]:
        """Return the objective's values by step; no two epochs share one, since no trial has more epochs than steps."""
        curve, epochs = CURVES[self.job.tuning.objective[0]], trial.job.training.epochs
        return {round(record["epoch"] * self._num_steps / epochs): record[curve] for record in history}

    def _copy(
        self, trials: list[FrozenTrial], memory: InMemoryStorage, sampler: optuna.samplers.BaseSampler | None = None
    ) -> optuna.Study:
        # Hyperband draws brackets by the name, which is the same for the same search in any workspace.
        copy = self._open_study(self.name, memory, sampler=sampler)
        copy.add_trials(trials)
        return copy

    def _end(self, trial: Trial, state: TrialState, values: list[float] | None, **facts: Any) -> None:
        trial_id = self._id(trial.number)
        if self._storage.get_trial(trial_id).state.is_finished():
            return
        for name, value in facts.items():
            self._storage.set_trial_user_attr(trial_id, name, value)
        self._storage.set_trial_state_values(trial_id, state, values)

    def _id(self, number: int, storage: BaseStorage | None = None) -> int:
        name, storage = (self.name, storage) if storage else (self.study_name, self._storage)
        return storage.get_trial_id_from_study_id_trial_number(storage.get_study_id_from_name(name), number)


def _lies_in(distribution: BaseDistribution, value: Value) -> bool:
    try:
        optuna.trial.create_trial(
            state=TrialState.WAITING, params={"value": value}, distributions={"value": distribution}
        )
    except ValueError:
        return False
    return True


def _name(job: Job, space: Space, snapshot: Snapshot) -> str:
    """Return the name of a search, made of all that decides its trials and their order."""
    tuning = job.tuning
    decisive = {
        "given": folder_by_settings(Workspace(root=job.workspace), snapshot, job.images, job.training).name,
        "space": space.model_dump(mode="json", exclude={"path"})["parameters"],
        **tuning.model_dump(mode="json", include={"objective", "sampler", "pruner", "startup_trials"}),
        "sampler_options": options(tuning),
    }
    digest = hashlib.sha256(json.dumps(decisive).encode()).hexdigest()
    return f"{snapshot.digest[:12]}-{digest[:12]}"
