"""The name of a run in Prefect, when it starts."""

from prefect.runtime import flow_run

from bincount import run_names


def name_run() -> str:
    """Return the name of the run that starts now: the one that somebody gave it, else what it does."""
    flow, name = flow_run.flow_name, flow_run.name
    if not run_names.is_replaceable(name, flow):
        return name
    return run_names.name_run(flow, flow_run.parameters, flow_run.scheduled_start_time)
