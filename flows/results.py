"""The results that flows return."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bincount.auditing import Audited
from bincount.data.balance import ClassBalance
from bincount.data.fetch import SyncReport
from bincount.data.packs import Pack
from bincount.data.snapshots import Snapshot
from bincount.data.sync import Plan
from bincount.evaluation.crossfit import CrossFitted
from bincount.evaluation.decision import Decision
from bincount.evaluation.drift import Drift
from bincount.evaluation.evaluate import Evaluation
from bincount.lifecycle import NewData
from bincount.retention import Removed
from bincount.tracking.registry import Version
from bincount.training.run_folder import Trained
from flows.timing import Timings

if TYPE_CHECKING:  # they import Optuna, which need not be installed
    from bincount.tuning.finalists import Findings
    from bincount.tuning.search import Search


@dataclass(frozen=True)
class Prepared:
    """A dataset brought up to date, and what was found on the way."""

    plan: Plan
    report: SyncReport
    snapshot: Snapshot
    balance: ClassBalance
    pack: Pack
    timings: Timings


@dataclass(frozen=True)
class TrainedModel:
    """A model that was trained, evaluated and registered, and the decision whether it became champion.

    page is the address where MLflow shows the version, empty without a server. cross_fitted is None where that was not
    asked for.
    """

    snapshot: Snapshot
    trained: Trained
    evaluation: Evaluation
    version: Version
    decision: Decision
    timings: Timings
    page: str = ""
    cross_fitted: CrossFitted | None = None


@dataclass(frozen=True)
class Finished:
    """A dataset and the model that was trained on it."""

    prepared: Prepared
    model: TrainedModel


@dataclass(frozen=True)
class AuditResult:
    """An audit, and where registered, the mean of the networks of its folds.

    page is the address where MLflow shows the audit, empty without a server.
    """

    audited: Audited
    registered: TrainedModel | None
    timings: Timings
    page: str = ""


@dataclass(frozen=True)
class SearchResult:
    """A search of settings that came to its end, and where registered, the model of its winner.

    spent says what it took, and why it ended early where it did.
    """

    search: "Search"
    findings: "Findings"
    spent: str
    page: Path
    registered: TrainedModel | None
    timings: Timings


@dataclass(frozen=True)
class NightlyRun:
    """The result of a nightly run.

    model is None where no training was worthwhile, and new_data says why; removed is None where the clean-up failed.
    starts is how often the run was started, where its process was killed. approvals are sentences: what became of
    versions that people approved or rejected, and which versions wait for that. undetectable is a sentence where the
    test bins are too few to find the gain that is asked for.
    """

    prepared: Prepared
    new_data: NewData
    drift: Drift
    model: TrainedModel | None
    removed: Removed | None
    timings: Timings
    starts: int = 1
    approvals: tuple[str, ...] = ()
    undetectable: str = ""
