"""The time and the money that a search may take."""

import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bincount.errors import DatasetError, SettingsError
from bincount.files import read_sealed, write_sealed
from bincount.settings import Job
from bincount.tuning.finalists import GIVEN, NUM_FINALISTS, best_trials
from bincount.tuning.identity import CLOCK

if TYPE_CHECKING:
    import pandas as pd

    from bincount.tuning.search import Search

SECONDS_BETWEEN_WRITES = 5


def check(job: Job) -> None:
    """Raise SettingsError where there is a budget, but no price of an hour."""
    if job.tuning.budget is not None and not job.retraining.price_per_hour:
        raise SettingsError(
            "--budget needs the price of an hour of the machine; give --price-per-hour, or limit the --hours"
        )


class Clock:
    """The time of a search over all its starts, kept in its folder as it goes, and the limits of the job.

    `hours` limits the time that passes. `budget` limits what it costs: here the time that passes, at `price_per_hour`;
    on a pool the time of its machines, which `spend` counts.
    """

    def __init__(self, search: "Search", now: Callable[[], float] = time.monotonic) -> None:
        """Start counting; the time of earlier starts is read from the search's folder. Raises DatasetError."""
        self._search, self._now, self._lock = search, now, threading.RLock()
        self._path = search.folder / CLOCK
        kept = _read(self._path)
        self._before, self._began, self._written = kept["seconds"], now(), now()
        self._trainings: dict[str, float] = kept["trainings"]
        self._ended, self._overhead = kept["ended"], kept["overhead"]
        self._of_seeds: float = kept.get("of_seeds", 0.0)  # of the time, what other seeds took
        self._seeds_since: float | None = None
        self._complete, self._seeds = set(kept.get("complete", ())), set(map(tuple, kept.get("seeds", ())))
        self._under_way: set[str] = set()
        self._stopped = ""

    @property
    def seconds(self) -> float:
        """The time of the search so far, over all starts."""
        return self._before + self._now() - self._began

    @property
    def machine_seconds(self) -> float:
        """The time that is paid for: of this machine, or of those of the pool."""
        return sum(self._trainings.values()) if self._search.job.tuning.on_pool else self.seconds

    @property
    def cost(self) -> float | None:
        """The money spent so far, in retraining.currency; None without a price."""
        price = self._search.job.retraining.price_per_hour
        return self.machine_seconds * price / 3600 if price else None

    def spend(self, training: str, seconds: float) -> None:
        """Count the time of a pool's machine for a training, by the name of its run folder; the latest time counts.

        It is called when the training starts and while it runs, and may be for one that was counted before; then `end`.
        """
        with self._lock:
            self._trainings[training] = max(seconds, self._trainings.get(training, 0))
            self._under_way.add(training)
            self._keep()

    def end(self, training: str, *, is_complete: bool) -> None:
        """Note that a training that `spend` counted has ended; others are expected to cost what complete ones did."""
        with self._lock:
            self._under_way.discard(training)
            if is_complete:
                self._complete.add(training)
            self._keep()

    def begin_seeds(self) -> None:
        """Count the time from here on for other seeds, so that trials are not expected to take as long."""
        with self._lock:
            self._seeds_since = self.seconds

    def end_seed(self, number: int, seed: int) -> None:
        """Note that a finalist is trained with a seed, for which nothing is to be left any more."""
        with self._lock:
            self._seeds.add((number, seed))

    def may_start(self, expected_seconds: float | None = None, *, reserve: bool = True) -> bool:
        """Return whether a training may start: there is time and money for it, and for the finalists' other seeds.

        expected_seconds is by default what complete trials took on average; the first trials always start.
        reserve=False leaves the other seeds out, for when they are what is to be started.
        """
        with self._lock:
            if self.is_over():
                return False
            tuning, table = self._search.job.tuning, self._search.table()
            expected = self._expected(table) if expected_seconds is None else expected_seconds
            others = self._num_other_seeds(table) if reserve else 0
            seconds = expected * (1 + math.ceil(others / tuning.parallel))
            machine_seconds = seconds
            if tuning.on_pool:
                each = self._expected_of_machines(table) if expected_seconds is None else expected_seconds
                spent = sum(min(each, self._trainings[training]) for training in self._under_way)
                machine_seconds = max(0.0, each * (1 + others + len(self._under_way)) - spent)
            for limit, spent, needed, what, flag in (
                (self._limit_of_time(), self.seconds, seconds, "time", "--hours"),
                (self._limit_of_machines(), self.machine_seconds, machine_seconds, "money", "--budget"),
            ):
                if spent + needed > limit:
                    seeds = " and for the other seeds of the best" if others else ""
                    self._stopped = f"there was no {what} left for another training{seeds}{_remedy(flag)}"
                    return False
            if reserve:  # of an earlier refusal: a training ended sooner than was expected
                self._stopped = ""
            return True

    def is_over(self) -> bool:
        """Return whether a limit is reached, so that trainings under way stop with a checkpoint; keep the time too."""
        with self._lock:
            if self._now() - self._written >= SECONDS_BETWEEN_WRITES:
                self._keep()
            if self.seconds >= self._limit_of_time():
                self._stopped = f"the time was over{_remedy('--hours')}"
            elif self.machine_seconds >= self._limit_of_machines():
                self._stopped = f"the money was spent{_remedy('--budget')}"
            else:
                return False
            return True

    def close(self) -> None:
        """Keep the time that was spent."""
        with self._lock:
            self._keep()

    def describe(self) -> str:
        """Return the time and the money spent, of what limits they have, and why the search ended early if it did.

        It then says how the search goes on, too.
        """
        job = self._search.job
        spent = _hours(self.seconds) + (f" of {job.tuning.hours:g} h" if job.tuning.hours else "")
        if self.cost is not None:
            spent += f", {self.cost:.2f}" + (f" of {job.tuning.budget:.2f}" if job.tuning.budget else "")
            spent += f" {job.retraining.currency}"
        return f"{spent}; {self._stopped}" if self._stopped else spent

    def _limit_of_time(self) -> float:
        hours = self._search.job.tuning.hours
        return math.inf if hours is None else hours * 3600

    def _limit_of_machines(self) -> float:
        job = self._search.job
        return math.inf if job.tuning.budget is None else job.tuning.budget / job.retraining.price_per_hour * 3600

    def _expected(self, table: "pd.DataFrame") -> float:
        """Return the time that a training takes from start to end: as long as complete trials trained, and more.

        What passes beside training (validation, the start of processes, waiting) is taken from the search as a whole,
        without that of other seeds, which are no trials.
        """
        ended, trained = int((table["state"] != "running").sum()), table["seconds"].sum()
        if ended != self._ended and trained:
            self._ended = ended
            self._overhead = max(
                1.0, (self.seconds - self._seconds_of_seeds()) * self._search.job.tuning.parallel / trained
            )
            self._keep()
        complete = table.loc[table["state"] == "complete", "seconds"]
        return float(complete.mean() * self._overhead) if len(complete) else 0.0

    def _expected_of_machines(self, table: "pd.DataFrame") -> float:
        """Return the time of a pool's machine that a training takes: what complete ones took, without the waiting."""
        spent = [self._trainings[training] for training in self._complete]
        complete = table.loc[table["state"] == "complete", "seconds"]  # where the search began on this machine
        return sum(spent) / len(spent) if spent else float(complete.mean()) if len(complete) else 0.0

    def _seconds_of_seeds(self) -> float:
        since = 0.0 if self._seeds_since is None else self.seconds - self._seeds_since
        return self._of_seeds + since

    def _num_other_seeds(self, table: "pd.DataFrame") -> int:
        """Return how many trainings the finalists and the given settings still need beside those of their trials.

        Where a search is extended, those of the finalists so far are there; the next trial may need its own.
        """
        job = self._search.job
        finalists = min(NUM_FINALISTS, max(1, int((table["number"] > 0).sum())))
        first, of_each = job.training.seed, job.tuning.seeds_per_trial - 1
        best = {GIVEN, *(trial.number for trial in best_trials(self._search))}
        trained = sum(number in best and first < seed <= first + of_each for number, seed in self._seeds)
        return max(of_each, (1 + finalists) * of_each - trained)

    def _keep(self) -> None:
        kept = {"seconds": self.seconds, "trainings": self._trainings}
        kept |= {"ended": self._ended, "overhead": self._overhead, "of_seeds": self._seconds_of_seeds()}
        write_sealed(self._path, kept | {"complete": sorted(self._complete), "seeds": sorted(self._seeds)})
        self._written = self._now()


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_sealed(path)
    except FileNotFoundError:
        return {"seconds": 0.0, "trainings": {}, "ended": 0, "overhead": 1.0}
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"{path} is damaged ({error}), which has the time that the search took; remove it to count from 0"
        ) from None


def _remedy(flag: str) -> str:
    return f"; with more {flag} the same command goes on"


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"
