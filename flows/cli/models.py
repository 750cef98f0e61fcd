"""Commands that evaluate, compare and promote models, and predict with them."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from bincount import hints
from bincount.settings import DEFAULT_WORKSPACE, DataConfig, Job, PromotionConfig, RegistryConfig
from bincount.workspace import Workspace
from flows.cli.flow_runs import flow_runs
from flows.cli.options import (
    COMPARISON,
    PUBLIC_BUCKET,
    THE_DATASET,
    Bucket,
    Comparison,
    ConfigFile,
    Dataset,
    Device,
    Model,
    Promotion,
    Registry,
    Root,
    sections,
    whole,
)
from flows.cli.program import app

if TYPE_CHECKING:
    import pandas


@app.command(sort_key=4)
def evaluate(
    model: Model = "champion",
    *,
    data: Dataset = THE_DATASET,
    registry: Registry = RegistryConfig(),
    device: Device = "auto",
    workspace: Root = DEFAULT_WORKSPACE,
    config: ConfigFile = None,
) -> None:
    """Score a model on the test images of the last prepared snapshot."""
    from bincount import preflight

    job = Job(data=whole(DataConfig, data), registry=registry, workspace=workspace)
    preflight.check_evaluate(job, device)
    preflight.check_model(job, model)
    with flow_runs(registry, workspace, "flows.evaluate"):
        from bincount.reporting import console, tables
        from flows import evaluate as flow

        console.show(tables.of_evaluation(flow.evaluate(model, **sections(job), device=device)))


@app.command(sort_key=5)
def predict(
    pictures: Annotated[
        list[str],
        Parameter(help="image files, folders with all below them, patterns as 'day1/*.jpg', or s3://BUCKET[/PREFIX]"),
    ],
    /,
    *,
    model: Model = "champion",
    device: Device = "auto",
    output: Annotated[Literal["table", "csv", "json"], Parameter(help="csv and json hold every probability")] = "table",
    min_confidence: Annotated[
        float | None,
        Parameter(
            help="where the likeliest count or class has a lower probability, the answer is look",
            validator=Number(gte=0, lte=1),
        ),
    ] = None,
    record_before: Annotated[
        str | None,
        Parameter(
            help="items that the record before says, for all pictures, or a CSV file with the columns path and record; "
            "the count with it stands beside that of the picture alone"
        ),
    ] = None,
    bucket: Bucket = PUBLIC_BUCKET,
    registry: Registry = RegistryConfig(),
    workspace: Root = DEFAULT_WORKSPACE,
    config: ConfigFile = None,
) -> None:
    """Predict the count or class of pictures; ends with 1 when one cannot be read, after the others are predicted."""
    from bincount import preflight
    from bincount.tracking.connection import find_checkpoint

    data = whole(DataConfig, bucket)
    preflight.check_device(device)
    preflight.check_registry(registry)
    preflight.check_url("--endpoint", data.endpoint, preflight.WEB)
    from bincount.data import inputs

    records = None if record_before is None else inputs.read_records(record_before)
    from bincount.evaluation.predict import add_history, check_history, predict_inputs  # with torch
    from bincount.training.spec import read_spec

    threads = data.concurrency if any("://" in name for name in pictures) else None
    with find_checkpoint(model, Workspace(root=workspace), registry) as checkpoint:
        if records is not None:
            check_history(read_spec(checkpoint))
        found = inputs.find(pictures, data)
        table, bad = predict_inputs(checkpoint, found.pictures, device, threads=threads)
        if records is not None:
            table = add_history(table, read_spec(checkpoint), inputs.records_of(list(table["path"]), records))
        if min_confidence is not None:
            table = _abstain(table, min_confidence, model, checkpoint, Workspace(root=workspace), registry)
    if found.pictures:
        _show_predictions(table, output)
    unreadable = found.unreadable | bad
    for name, reason in unreadable.items():
        print(f"bincount: {name} is not an image that can be read ({reason})", file=sys.stderr)
    if unreadable:
        sys.exit(1)


@app.command(sort_key=6)
def models(
    *,
    newest: Annotated[int, Parameter(help="how many versions to list", validator=Number(gte=1))] = 20,
    registry: Registry = RegistryConfig(),
    workspace: Root = DEFAULT_WORKSPACE,
    config: ConfigFile = None,
) -> None:
    """List the registered versions with aliases, scores and data, and who changed the champion when, and why."""
    from bincount.reporting import console
    from bincount.tracking.connection import open_existing
    from flows import summary

    model_registry = open_existing(Workspace(root=workspace), registry)
    console.show(summary.of_models(model_registry.versions(newest), model_registry.history()[-newest:]))


@app.command(sort_key=7)
def compare(
    first: Annotated[str, Parameter(help="champion, challenger, or a version's number")],
    second: Annotated[str, Parameter(help="the same")],
    *,
    data: Dataset = THE_DATASET,
    promotion: Comparison = COMPARISON,
    registry: Registry = RegistryConfig(),
    device: Device = "auto",
    workspace: Root = DEFAULT_WORKSPACE,
    config: ConfigFile = None,
) -> None:
    """Show two registered versions side by side, and evaluate both on the same test images; nothing is promoted.

    The decision is that of `bincount promote` with the first as champion and the second as challenger.
    """
    from bincount import preflight
    from bincount.tracking.connection import open_existing

    job = Job(
        data=whole(DataConfig, data),
        registry=registry,
        promotion=whole(PromotionConfig, promotion),
        workspace=workspace,
    )
    preflight.check_comparison(job, device)
    preflight.check_versions(job, [first, second])
    with flow_runs(registry, workspace, "flows.promote"):
        from bincount.reporting import console, tables
        from flows import promote as flow
        from flows import summary

        model_registry = open_existing(Workspace(root=workspace), registry)
        pair = [model_registry.find(first), model_registry.find(second)]
        first, second = (str(each.version) for each in pair)  # whatever an alias does meanwhile
        decision = flow.compare(first, second, **sections(job), device=device)
        names = [f"version {each.version}" for each in pair]
        facts = summary.of_versions(*pair, [model_registry.runs.read_params(each.run_id) for each in pair])
        verdict = "would take" if decision.promote else "would not take"
        sentence = f"{names[1].capitalize()} {verdict} the place of {names[0]} as champion: {decision.reason}"
        console.show(console.decision_last(facts | tables.of_comparison(decision, *names), otherwise=sentence))


@app.command(sort_key=8)
def promote(
    model: Annotated[str, Parameter(help="challenger, or a version's number")] = "challenger",
    *,
    data: Dataset = THE_DATASET,
    promotion: Promotion = PromotionConfig(),
    registry: Registry = RegistryConfig(),
    device: Device = "auto",
    workspace: Root = DEFAULT_WORKSPACE,
    config: ConfigFile = None,
) -> None:
    """Make a registered version champion if it is significantly better than the present one, or with --force anyway."""
    from bincount import preflight

    job = Job(data=whole(DataConfig, data), registry=registry, promotion=promotion, workspace=workspace)
    preflight.check_comparison(job, device)
    preflight.check_versions(job, [model])
    with flow_runs(registry, workspace, "flows.promote"):
        from bincount.reporting import console, tables
        from flows import promote as flow

        decision = flow.promote(model, **sections(job), device=device)
        console.show(console.decision_last(tables.of_decision(decision)))


@app.command(sort_key=8.5)
def approve(
    model: Annotated[str, Parameter(help="a version's number, or challenger")],
    *,
    reject: Annotated[
        bool, Parameter(negative="", help="reject it: it is not promoted, and nobody is asked again")
    ] = False,
    reason: Annotated[str, Parameter(help="reason, for those who look at the registry later")] = "",
    data: Dataset = THE_DATASET,
    promotion: Comparison = COMPARISON,
    registry: Registry = RegistryConfig(),
    device: Device = "auto",
    workspace: Root = DEFAULT_WORKSPACE,
    config: ConfigFile = None,
) -> None:
    """Approve the promotion of a version that waits for it (--approval required), and promote it if it still is better.

    It is compared with the champion of now. Where the images are not in this workspace, the next nightly run does so.
    """
    from bincount import approval, preflight
    from bincount.errors import SnapshotNotFound
    from bincount.reporting import console, tables
    from bincount.tracking.connection import open_existing
    from tasks.origin import who

    job = Job(
        data=whole(DataConfig, data),
        registry=registry,
        promotion=whole(PromotionConfig, promotion),
        workspace=workspace,
    )
    preflight.check_device(device)
    preflight.check_registry(registry)
    model_registry = open_existing(Workspace(root=workspace), registry)
    version = model_registry.find(model)
    approval.answer(model_registry, version, "rejected" if reject else "approved", by=who(), reason=reason)
    if reject:
        decision = approval.record_rejection(model_registry, model_registry.find(str(version.version)))
        console.show(console.decision_last(tables.of_decision(decision)))
        return
    try:
        preflight.check_comparison(job, device)
    except SnapshotNotFound as error:
        said = f"Version {version.version} is approved. The next nightly run compares and promotes it, since here"
        print(hints.complete(f"{said} {error}"))
        return
    with flow_runs(registry, workspace, "flows.promote"):
        from flows import promote as flow

        decision = flow.promote(str(version.version), **sections(job), device=device)
        console.show(console.decision_last(tables.of_decision(decision)))


@app.command(sort_key=9)
def rollback(
    *,
    reason: Annotated[str, Parameter(help="reason, for those who look at the registry later")] = "asked for",
    registry: Registry = RegistryConfig(),
    workspace: Root = DEFAULT_WORKSPACE,
    config: ConfigFile = None,
) -> None:
    """Make the previous champion champion again; only `promote --force` promotes the one that is rolled back again.

    It needs no approval. Whether the previous champion still starts is tried when it is champion, and said.
    """
    from bincount.reporting import console
    from bincount.tracking import starting
    from bincount.tracking.connection import open_existing
    from flows import summary
    from tasks.origin import who

    model_registry = open_existing(Workspace(root=workspace), registry)
    previous = model_registry.rollback(by=who(), reason=reason)
    # Only now: in an emergency seconds count, and what was in use before is worth more than what is known to be wrong.
    if failure := starting.explain_failure(model_registry, previous):
        said = (
            f"bincount: version {previous.version} is champion again, but cannot be used here as it is packaged: "
            f"{failure}; `bincount promote VERSION --force` puts another in its place"
        )
        print(hints.complete(said), file=sys.stderr)
    console.show(summary.of_models(model_registry.versions(5), model_registry.history()[-5:]))


@app.command(sort_key=9.5)
def report(
    *,
    output: Annotated[
        Path | None, Parameter(help="file to write [default: report.html in the workspace]", name=["--output", "-o"])
    ] = None,
    registry: Registry = RegistryConfig(),
    workspace: Root = DEFAULT_WORKSPACE,
    config: ConfigFile = None,
) -> None:
    """Write one HTML page over the months, which opens without internet, and print where it is.

    It shows the champion and how good it is, scores of all versions with their intervals, changes of the champion,
    growth of the data, drift, time and cost of nightly runs, and what is quarantined. Nothing else is changed. Each
    nightly run writes it anew.
    """
    from bincount import database, preflight
    from bincount import report as months
    from bincount.tracking.connection import open_existing

    preflight.check_registry(registry)
    folders = Workspace(root=workspace)
    file = database.sqlite_path(folders.tracking_uri(registry))
    is_new = file is not None and not file.exists()  # a dataset alone is worth a page
    model_registry = None if is_new else open_existing(folders, registry)
    path = output or folders.report_of(registry)
    months.write(months.gather(model_registry, registry, folders), path)
    print(path)


def _abstain(
    table: "pandas.DataFrame",
    min_confidence: float,
    model: str,
    checkpoint: Path,
    workspace: Workspace,
    registry: RegistryConfig,
) -> "pandas.DataFrame":
    """Put "look" in place of unsure answers, and say on stderr how often the others were right in the model's test."""
    from bincount.evaluation import coverage
    from bincount.tracking.tested import find_coverage
    from bincount.training.spec import read_spec

    spec = read_spec(checkpoint)
    point = find_coverage(model, spec, min_confidence, workspace, registry)
    unknown = f"how often {model} is right at this confidence is not known; a registered version's test says so"
    known = f"in its own test, {point.describe()}" if point else unknown
    print(f"bincount: {known}", file=sys.stderr)
    return coverage.abstain(table, min_confidence)


def _show_predictions(table: "pandas.DataFrame", output: str) -> None:
    if output == "csv":
        from bincount import text

        print(text.harmless_csv(table).to_csv(index=False), end="")
    elif output == "json":
        print(table.to_json(orient="records", indent=2))
    elif len(table):
        from bincount.reporting import console, tables

        console.show({"": tables.predictions(table)})
