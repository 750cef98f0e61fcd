"""The command that compares the records of a source with its pictures."""

from typing import Annotated, Literal

from cyclopts import Parameter

from bincount.settings import (
    DEFAULT_WORKSPACE,
    AuditConfig,
    DataConfig,
    ImageConfig,
    Job,
    LaunchConfig,
    PromotionConfig,
    RegistryConfig,
    RunnerConfig,
    TrainConfig,
)
from bincount.workspace import Workspace
from flows.cli.flow_runs import flow_runs
from flows.cli.options import (
    Audit,
    ConfigFile,
    Data,
    Images,
    Launch,
    Preset,
    Promotion,
    Registry,
    Root,
    Runner,
    ScoredBy,
    Training,
    sections,
)
from flows.cli.program import app


@app.command(sort_key=5.5)
def audit(
    scored_by: ScoredBy = "champion",
    *,
    data: Data = DataConfig(),
    images: Images = ImageConfig(),
    training: Training = TrainConfig(),
    registry: Registry = RegistryConfig(),
    audit: Audit = AuditConfig(),
    runner: Runner = RunnerConfig(),
    launch: Launch = LaunchConfig(),
    promotion: Promotion = PromotionConfig(),
    fetch: Annotated[bool, Parameter(help="bring the dataset up to date first")] = True,
    to: Annotated[
        Literal["label-studio", "fiftyone"] | None, Parameter(help="write the bins to check for this tool too")
    ] = None,
    workspace: Root = DEFAULT_WORKSPACE,
    preset: Preset = None,
    config: ConfigFile = None,
) -> None:
    """Rank bins by how likely their record is wrong, as networks see it that were not trained on them."""
    from bincount import preflight
    from bincount.data import source

    job = Job(
        data=data,
        images=images,
        training=training,
        registry=registry,
        launch=launch,
        promotion=promotion,
        runner=runner,
        audit=audit,
        workspace=workspace,
    )
    preflight.check_audit(job, scored_by, fetch=fetch)
    preflight.check_scorer(job, scored_by)
    if fetch:
        source.probe(data)
    with flow_runs(registry, workspace, "flows.audit"):
        from bincount.reporting import console
        from flows import audit as flow
        from flows import summary

        result = flow.audit(scored_by, **sections(job), fetch=fetch)
        console.show(summary.of_audit(result))
        if to:
            from bincount import auditing

            print(auditing.export_queue(result.audited, job, to))
        summary.show_pages(Workspace(root=workspace).tracking_uri(registry))
