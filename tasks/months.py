"""The record of a run and the report over months as a task."""

from pathlib import Path

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from bincount import report
from bincount.reporting import records
from bincount.reporting.months import head
from bincount.reporting.records import RunRecord
from bincount.settings import Job
from bincount.text import escape_markdown, markdown_code, markdown_link, sentence_markdown
from bincount.workspace import Workspace
from tasks.registry import open_registry


# One retry: a run does not wait for long for what the next one writes anyway.
@task(
    name="write report",
    task_run_name="write the report over months",
    cache_policy=NO_CACHE,
    retries=1,
    retry_delay_seconds=5,
)
def write_report(job: Job, record: RunRecord) -> Path:
    """Keep the record of a run, and write the report anew: in the workspace, and beside the champion's history."""
    workspace = Workspace(root=job.workspace)
    records.keep(record, workspace.root)  # first: the page can be written again, from the records
    registry = open_registry(job)
    facts = report.gather(registry, job.registry, workspace)
    path = workspace.report_of(job.registry)
    page = report.write(facts, path)
    link = registry.keep_report(page)
    top = head.of(facts)
    where = markdown_link("The whole report", link) if link else f"The whole report is in {markdown_code(path)}"
    attention = "\n".join(f"- {sentence_markdown(sentence)}" for sentence in top.attention)
    tiles = "\n".join(f"- {escape_markdown(f'{name}: {value} ({detail})')}" for name, value, detail in top.tiles)
    parts = [f"## {escape_markdown(top.headline)}", sentence_markdown(top.detail), where, tiles]
    create_markdown_artifact(
        key="report",
        markdown="\n\n".join([*parts, *([f"### Needs attention\n\n{attention}"] if attention else [])]),
        description="Report over months",
    )
    return path
