"""Names of runs while they wait: what they will do, in place of the words that Prefect makes up.

Prefect's server names a run of a deployment at random, and so does its form; the flow gives it a name when it starts.
Until then, and for ever where its parameters are refused, "epsilon2-ina" says nothing. SQLAlchemy reports each run
before the server inserts it, which gives it the name then. Where that fails, the name is Prefect's.
"""

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from bincount.environment import TAG
from bincount.run_names import FLOWS, is_replaceable, name_run

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection
    from sqlalchemy.orm import ORMExecuteState

logger = logging.getLogger(__name__)


def name_queued_runs() -> None:
    """Let the server of this process name the runs that it is asked for, and those that its scheduler makes."""
    import sqlalchemy
    from prefect.server.database.orm_models import FlowRun
    from sqlalchemy.orm import Session

    if not sqlalchemy.event.contains(Session, "do_orm_execute", _before_schedule):
        sqlalchemy.event.listen(Session, "do_orm_execute", _before_schedule)
        sqlalchemy.event.listen(FlowRun, "before_insert", _before_insert)


def _before_insert(mapper: object, connection: "Connection", run: Any) -> None:
    """Name a run that a person, a program or an automation asks for."""
    try:
        row = {
            name: getattr(run, name)
            for name in ("name", "flow_id", "deployment_id", "tags", "parameters", "next_scheduled_start_time")
        }
        run.name = _name(row, _flow_names(connection, [row])) or run.name
    except Exception:
        logger.warning("a run keeps the name that Prefect made up for it", exc_info=True)


def _before_schedule(execution: "ORMExecuteState") -> None:
    """Name the runs that the scheduler inserts, all at once, and those of other projects among them."""
    try:
        if not execution.is_insert or getattr(execution.statement, "table", None) is None:
            return
        rows = execution.parameters
        if execution.statement.table.name != "flow_run" or not isinstance(rows, list):
            return
        from prefect.utilities.names import generate_slug

        flows = _flow_names(execution.session, rows)
        names = [_name(row, flows) or row.get("name") or generate_slug(2) for row in rows]
    except Exception:
        logger.warning("runs keep the names that Prefect makes up for them", exc_info=True)
        return
    for row, name in zip(rows, names, strict=True):
        row["name"] = name  # in each row, since they are inserted as one


def _name(row: dict[str, Any], flows: dict[object, str]) -> str | None:
    """Return the name of a run of ours; nothing for another one, and where somebody gave it a name."""
    flow = flows.get(row["flow_id"], "")
    is_ours = flow in FLOWS and row.get("deployment_id") and TAG in (row.get("tags") or ())
    if not is_ours or not is_replaceable(row.get("name"), flow):
        return None
    return name_run(flow, row.get("parameters") or {}, row.get("next_scheduled_start_time") or datetime.now(UTC))


def _flow_names(connection: Any, rows: list[dict[str, Any]]) -> dict[object, str]:
    import sqlalchemy
    from prefect.server.database.orm_models import Flow

    wanted = sqlalchemy.select(Flow.id, Flow.name).where(Flow.id.in_({row["flow_id"] for row in rows}))
    return {flow_id: name for flow_id, name in connection.execute(wanted)}
