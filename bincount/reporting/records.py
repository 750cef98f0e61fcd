"""Records of nightly and whole runs: what each found, did, decided and cost, for a report over months.

    run-records/FLOW_RUN.json    one run, in the workspace

MLflow keeps the runs that trained something, and Prefect's server may be another one next year. So each run leaves one
small file. It is named by the flow run, and written whole or not at all: a run that was started again replaces its own
record and adds none.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError, field_validator

from bincount.evaluation.drift import Drift
from bincount.evaluation.reviewing import ReviewFigures
from bincount.files import read_sealed, write_sealed

logger = logging.getLogger(__name__)

FOLDER = "run-records"  # in the workspace
FAILURES = ("failed", "crashed", "cancelled")


class RunRecord(BaseModel, frozen=True):
    """What one run found, did, decided and cost; fields of a later release are passed over.

    flow is retrain (a nightly run) or run; ended is UTC; outcome is trained, skipped, failed, crashed or cancelled;
    summary says it in a sentence. model_name is that of the registered model, empty where it is not known. version is
    the one that was registered, and promoted says whether it became champion. quarantined counts the bins of the
    dataset by kind of reason. reviews are None where nothing was reviewed. timings are seconds by step, of the last
    start. price_per_hour is 0 where it was not known.
    """

    flow_run: str
    flow: str
    ended: datetime
    outcome: str
    summary: str
    source: str = ""
    model_name: str = ""
    version: int | None = None
    promoted: bool = False
    num_images: int | None = None
    num_new: int | None = None
    num_fetched: int | None = None
    quarantined: dict[str, int] | None = None
    drift: Drift | None = None
    reviews: ReviewFigures | None = None
    timings: dict[str, float] = Field(default_factory=dict)
    price_per_hour: float = 0.0
    currency: str = "USD"

    @field_validator("drift", mode="before")
    @classmethod
    def _pass_over_later_fields(cls, drift: object) -> object:
        """Leave out what a later release has added to a drift, at any depth, where the models would refuse it."""
        if not isinstance(drift, Mapping):
            return drift
        known = deepcopy(drift)
        try:
            Drift.model_validate(drift)
        except ValidationError as refused:
            for error in refused.errors():
                if error["type"] == "extra_forbidden":
                    *path, name = error["loc"]
                    holder = known
                    for step in path:
                        holder = holder[step]
                    del holder[name]
        return known

    @property
    def seconds(self) -> float:
        """How long the run took, without waiting for others."""
        return sum(self.timings.values())

    @property
    def cost(self) -> float | None:
        """The price of that time in the currency; None where the price of an hour was not known."""
        return self.seconds / 3600 * self.price_per_hour if self.price_per_hour else None


def keep(record: RunRecord, workspace: Path) -> Path:
    """Write the record of a run into a workspace, in place of one that the same run has left. Raises DiskFull."""
    name = re.sub(r"[^\w-]", "_", record.flow_run) or "run"
    path = workspace / FOLDER / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_sealed(path, record.model_dump(mode="json", exclude_none=True))
    return path


def read_all(workspace: Path) -> tuple[Sequence[RunRecord], Sequence[Path]]:
    """Return the records in a workspace in order of time, and the files that are damaged."""
    records, damaged = [], []
    for path in sorted((workspace / FOLDER).glob("[!.]*.json")):
        try:
            records.append(RunRecord.model_validate(read_sealed(path)))
        except (OSError, ValueError) as error:
            logger.warning("%s is damaged (%s) and left out; remove it", path, str(error).splitlines()[0])
            damaged.append(path)
    return sorted(records, key=lambda record: record.ended), damaged
