"""What a flow run leaves for the report over months: its record, also where it did not come to its end."""

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from prefect import Flow
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.runtime import flow_run as current
from prefect.states import State
from pydantic import BaseModel

from bincount.data import bins
from bincount.errors import BincountError, mask_credentials
from bincount.reporting import records
from bincount.reporting.records import RunRecord
from bincount.settings import DEFAULT_WORKSPACE, DataConfig, Job, RegistryConfig, RetrainConfig, TrainConfig
from flows import summary
from flows.results import Finished, NightlyRun, Prepared, TrainedModel
from flows.timing import Timings

Config = TypeVar("Config", bound=BaseModel)

logger = logging.getLogger("bincount.flows")

# Prefect calls the hook of a cancelled run while it is being cancelled.
OUTCOMES = {StateType.CRASHED: "crashed", StateType.CANCELLING: "cancelled", StateType.CANCELLED: "cancelled"}
VERBS = {"cancelled": "was cancelled"}


def of_nightly_run(run: NightlyRun, job: Job) -> RunRecord:
    """Return the record of a nightly run that came to its end."""
    about = {"num_new": run.new_data.num_new, "drift": run.drift, "reviews": run.new_data.reviews}
    price = {"price_per_hour": job.retraining.price_per_hour, "currency": job.retraining.currency}
    return _record(
        "retrain", run.prepared, run.model, run.timings, summary.nightly_headline(run), job, **about, **price
    )


def of_run(finished: Finished, job: Job) -> RunRecord:
    """Return the record of a whole run."""
    timings = Timings(**finished.prepared.timings, **finished.model.timings)
    return _record("run", finished.prepared, finished.model, timings, summary.headline(finished.model), job)


def record_end(flow: Flow, flow_run: FlowRun, state: State) -> None:  # a worker's runner passes these by name
    """Record a run that failed, crashed or was cancelled, with the time that it took; in an existing workspace only."""
    workspace = Path(flow_run.parameters.get("workspace") or DEFAULT_WORKSPACE)
    if not workspace.is_dir():  # it may be another machine's, as seen from a worker's runner
        return
    given = _section(flow_run.parameters, "retraining", RetrainConfig) or RetrainConfig()
    data = _section(flow_run.parameters, "data", DataConfig)
    outcome = OUTCOMES.get(state.type, "failed")
    record = RunRecord(
        flow_run=str(flow_run.id),
        flow=flow.name,
        ended=datetime.now(UTC),
        outcome=outcome,
        summary=mask_credentials(state.message or "no reason was given"),
        source=data.source if data else "",
        model_name=_model_name(flow_run.parameters),
        timings=_timings(flow_run, outcome),
        price_per_hour=given.price_per_hour,
        currency=given.currency,
    )
    try:
        records.keep(record, workspace)
    except (BincountError, OSError) as error:  # the run itself has ended, and its own page says why
        logger.warning("the run is not recorded for the report: %s", error)


def _timings(flow_run: FlowRun, outcome: str) -> dict[str, float]:
    """Return how long a run took; nothing where it was started again, since only its first start is known here."""
    if flow_run.start_time is None or flow_run.run_count > 1:
        return {}
    seconds = (datetime.now(UTC) - flow_run.start_time).total_seconds()
    return {f"until it {VERBS.get(outcome, outcome)}": seconds}


def _model_name(parameters: Mapping[str, Any]) -> str:
    """Return the name of the registered model that a run was for; empty where its settings do not say it."""
    registry, training = (_section(parameters, *of) for of in (("registry", RegistryConfig), ("training", TrainConfig)))
    return registry.of_task(training.task).model_name if registry and training else ""


def _section(parameters: Mapping[str, Any], name: str, config: type[Config]) -> Config | None:
    """Return settings that a run was given, as models or as JSON; those of its form's closed section come last.

    Returns None where they cannot be: they may be what the run has failed of.
    """
    others = parameters.get("others") or {}
    both = [parameters.get(name), _as_dict(others).get(name)]
    try:
        return config(**{key: value for some in both for key, value in _as_dict(some).items() if value is not None})
    except (TypeError, ValueError, BincountError):
        return None


def _as_dict(section: object) -> Mapping[str, Any]:
    if isinstance(section, BaseModel):
        return {name: getattr(section, name) for name in section.model_fields_set}
    return section if isinstance(section, Mapping) else {}


def _record(
    flow: str, prepared: Prepared, model: TrainedModel | None, timings: Timings, text: str, job: Job, **others: object
) -> RunRecord:
    manifest = prepared.snapshot.read()
    reasons = manifest.loc[manifest["status"] != "ok", "reason"].map(bins.reason_kind).value_counts()
    return RunRecord(
        flow_run=str(current.id),
        flow=flow,
        ended=datetime.now(UTC),
        outcome="trained" if model else "skipped",
        summary=text,
        source=job.data.source,
        model_name=job.registry.model_name,
        version=model.version.version if model else None,
        promoted=bool(model and model.decision.promote),
        num_images=prepared.snapshot.num_images,
        num_fetched=prepared.report.num_fetched,
        quarantined={reason: int(count) for reason, count in reasons.items()},
        timings=dict(timings),
        **others,
    )
