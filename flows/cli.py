"""The command line. Heavy imports wait for the command that needs them, so that --help is quick."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, CycloptsError, Group, Parameter
from cyclopts.validators import Number
from pydantic import BaseModel, ValidationError, create_model
from rich.text import Text

from bincount import database, services
from bincount.errors import BincountError, SettingsError
from bincount.frozen import Frozen
from bincount.problem import Classes
from bincount.settings import (
    DEFAULT_WORKSPACE,
    DataConfig,
    DriftConfig,
    ImageConfig,
    Job,
    LaunchConfig,
    PromotionConfig,
    RegistryConfig,
    RetentionConfig,
    RetrainConfig,
    RunnerConfig,
    TrainConfig,
)
from bincount.workspace import Workspace
from flows import interrupts, stacks, usage

if TYPE_CHECKING:
    import pandas

app = App(
    name="bincount",
    help="Count the items in warehouse bins from photos: from a bucket of images to a registered model.",
    version=lambda: version("bincount-pipeline"),
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,
    error_formatter=lambda error: Text(usage.explain(error)),
)
app.register_install_completion_command(help="Let the shell complete commands and options of bincount.")


def _some_of(model: type[BaseModel], *names: str) -> type[Frozen]:
    """Make a group of settings of those that a command uses; what would have no effect is no option of it."""
    fields: Any = {name: (model.model_fields[name].annotation, model.model_fields[name]) for name in names}
    return create_model(model.__name__, __base__=Frozen, **fields)


def _whole(model: type[BaseModel], some: BaseModel, **others: object) -> Any:
    """The settings of a group that `_some_of` made, as functions take them."""
    return model(**{name: getattr(some, name) for name in some.model_fields_set}, **others)


def _sections(job: Job) -> dict[str, Any]:
    """Return the sections that a command has set, as its flow takes them."""
    return {name: getattr(job, name) for name in job.model_fields_set}


# Of a dataset that was prepared, its settings say no more than which one it is: `Workspace.dataset` reads these.
DatasetConfig = _some_of(DataConfig, "source", "keep_splits", "only_listed", "endpoint")
ExportConfig = _some_of(DataConfig, "source", "keep_splits", "only_listed", "endpoint", "classes", "concurrency")
PictureConfig = _some_of(DataConfig, "region", "endpoint", "unsigned", "requester_pays", "limit", "concurrency")
ComparisonConfig = _some_of(PromotionConfig, *(name for name in PromotionConfig.model_fields if name != "force"))
ServerConfig = _some_of(RegistryConfig, "tracking_uri", "experiment")
THE_DATASET, ALL_CLASSES, PUBLIC_BUCKET = DatasetConfig(), ExportConfig(), PictureConfig()
COMPARISON, SERVERS = ComparisonConfig(), ServerConfig()

Data = Annotated[DataConfig, Parameter(name="*", group=Group("Data", sort_key=1))]
Dataset = Annotated[DatasetConfig, Parameter(name="*", group=Group("Data", sort_key=1))]
ToExport = Annotated[ExportConfig, Parameter(name="*", group=Group("Data", sort_key=1))]
Bucket = Annotated[PictureConfig, Parameter(name="*", group=Group("Pictures in a bucket", sort_key=1))]
Images = Annotated[ImageConfig, Parameter(name="*", group=Group("Images", sort_key=2))]
Training = Annotated[TrainConfig, Parameter(name="*", group=Group("Training", sort_key=3))]
Launch = Annotated[LaunchConfig, Parameter(name="*", group=Group("Processes", sort_key=4))]
Registry = Annotated[RegistryConfig, Parameter(name="*", group=Group("Registry", sort_key=5))]
Promotion = Annotated[PromotionConfig, Parameter(name="*", group=Group("Promotion", sort_key=7))]
Comparison = Annotated[ComparisonConfig, Parameter(name="*", group=Group("Promotion", sort_key=7))]
Servers = Annotated[ServerConfig, Parameter(name="*", group=Group("Registry", sort_key=5))]
Retraining = Annotated[RetrainConfig, Parameter(name="*", group=Group("Night", sort_key=8))]
Drift = Annotated[DriftConfig, Parameter(name="*", group=Group("Drift", sort_key=9))]
Retention = Annotated[RetentionConfig, Parameter(name="*", group=Group("Retention", sort_key=10))]
Runner = Annotated[RunnerConfig, Parameter(name="*", group=Group("Runner", sort_key=6))]
Root = Annotated[Path, Parameter(name="--workspace", help="folder that holds everything the pipeline makes")]
Model = Annotated[
    str,
    Parameter(name="--model", help="champion, challenger, a version's number, or a folder with model.safetensors"),
]
Device = Annotated[Literal["auto", "cpu", "cuda"], Parameter(help="where to compute")]
BySplit = Annotated[bool, Parameter(negative="", help="put train, val and test above the classes")]
DEFAULT_PREFECT_FILE = Path("deployments/prefect.yaml")


@contextmanager
def _flow_runs(registry: RegistryConfig | None, workspace: Path) -> Iterator[None]:
    """Let flows run in the block: servers answer, or there is one for its time, and the runs have our tag.

    By the tag automations and `doctor --services` know them. Raises ServiceUnavailable.
    """
    from prefect import tags

    from flows import temporary
    from flows.automations import TAG

    _check_services(registry, workspace)
    with temporary.serving(), tags(TAG):
        interrupts.watch_flow_runs()
        yield


@app.command(sort_key=1)
def run(
    *,
    data: Data = DataConfig(),
    images: Images = ImageConfig(),
    training: Training = TrainConfig(),
    registry: Registry = RegistryConfig(),
    runner: Runner = RunnerConfig(),
    launch: Launch = LaunchConfig(),
    promotion: Promotion = PromotionConfig(),
    workspace: Root = DEFAULT_WORKSPACE,
) -> None:
    """Fetch, pack, split, balance, train, evaluate, register and promote: the whole job.

    What an earlier run has done is not done again; an interrupted one goes on where it was.
    """
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
        workspace=workspace,
    )
    preflight.check_run(job)
    source.probe(data)
    with _flow_runs(registry, workspace):
        from flows import run as flow
        from flows import summary

        finished = flow.run(**_sections(job))
        summary.show(summary.of_run(finished.prepared, finished.model))
        summary.show_pages(Workspace(root=workspace).tracking_uri(registry))


@app.command(sort_key=1.5)
def retrain(
    *,
    data: Data = DataConfig(),
    images: Images = ImageConfig(),
    training: Training = TrainConfig(),
    registry: Registry = RegistryConfig(),
    retraining: Retraining = RetrainConfig(),
    drift: Drift = DriftConfig(),
    promotion: Promotion = PromotionConfig(),
    retention: Retention = RetentionConfig(),
    runner: Runner = RunnerConfig(),
    launch: Launch = LaunchConfig(),
    workspace: Root = DEFAULT_WORKSPACE,
) -> None:
    """What the nightly deployment does: fetch what is new, and train where enough of it is."""
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
        retraining=retraining,
        drift=drift,
        retention=retention,
        workspace=workspace,
    )
    preflight.check_run(job)
    source.probe(data)
    with _flow_runs(registry, workspace):
        from flows import retrain as flow
        from flows import summary

        night = flow.retrain(**_sections(job))
        summary.show(summary.of_night(night, retraining))
        summary.show_pages(Workspace(root=workspace).tracking_uri(registry))


@app.command(sort_key=2)
def prepare(
    *,
    data: Data = DataConfig(),
    images: Images = ImageConfig(),
    runner: Runner = RunnerConfig(),
    workspace: Root = DEFAULT_WORKSPACE,
) -> None:
    """Fetch what is new, pack the images, and assign the splits."""
    from bincount import preflight
    from bincount.data import source

    job = Job(data=data, images=images, runner=runner, workspace=workspace)
    preflight.check_prepare(job)
    source.probe(data)
    with _flow_runs(None, workspace):
        from flows import prepare as flow
        from flows import summary

        summary.show(summary.of_prepare(flow.prepare(**_sections(job))))


@app.command(sort_key=3)
def train(
    *,
    data: Dataset = THE_DATASET,
    images: Images = ImageConfig(),
    training: Training = TrainConfig(),
    registry: Registry = RegistryConfig(),
    launch: Launch = LaunchConfig(),
    promotion: Promotion = PromotionConfig(),
    snapshot: Annotated[str | None, Parameter(help="digest of the snapshot to train on [default: the last]")] = None,
    workspace: Root = DEFAULT_WORKSPACE,
) -> None:
    """Train on a prepared snapshot, evaluate on its test split, register the model, and promote it if it is better."""
    from bincount import preflight

    job = Job(
        data=_whole(DataConfig, data),
        images=images,
        training=training,
        registry=registry,
        launch=launch,
        promotion=promotion,
        workspace=workspace,
    )
    preflight.check_train(job, snapshot)
    with _flow_runs(registry, workspace):
        from flows import summary
        from flows import train as flow

        model = flow.train(**_sections(job), snapshot=snapshot)
        summary.show(summary.of_train(model))
        summary.show_pages(Workspace(root=workspace).tracking_uri(registry))


@app.command(sort_key=4)
def evaluate(
    model: Model = "champion",
    *,
    data: Dataset = THE_DATASET,
    registry: Registry = RegistryConfig(),
    device: Device = "auto",
    workspace: Root = DEFAULT_WORKSPACE,
) -> None:
    """Score a model on the test images of the last prepared snapshot."""
    from bincount import preflight

    job = Job(data=_whole(DataConfig, data), registry=registry, workspace=workspace)
    preflight.check_evaluate(job, device)
    preflight.check_models(job, [model])
    with _flow_runs(registry, workspace):
        from flows import evaluate as flow
        from flows import summary

        summary.show(summary.of_evaluation(flow.evaluate(model, **_sections(job), device=device)))


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
    output: Annotated[Literal["table", "csv", "json"], Parameter(help="csv and json have every probability")] = "table",
    bucket: Bucket = PUBLIC_BUCKET,
    registry: Registry = RegistryConfig(),
    workspace: Root = DEFAULT_WORKSPACE,
) -> None:
    """Count the items in pictures; ends with 1 when one of them cannot be read, after the others are predicted."""
    from bincount import preflight
    from bincount.tracking.connection import find_checkpoint

    data = _whole(DataConfig, bucket)
    preflight.check_device(device)
    preflight.check_registry(registry)
    preflight.check_url("--endpoint", data.endpoint, preflight.WEB)
    from bincount.evaluation import batch  # with torch
    from bincount.training.device import choose_device

    threads = data.concurrency if any("://" in name for name in pictures) else None
    with find_checkpoint(model, Workspace(root=workspace), registry) as checkpoint:
        found = batch.find(pictures, data)
        table, bad = batch.predict_inputs(checkpoint, found.inputs, choose_device(device), threads=threads)
    if found.inputs:
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
) -> None:
    """List the registered versions: aliases, scores and data; and who made which the champion, when and why."""
    from bincount.tracking.connection import open_existing
    from flows import summary

    opened = open_existing(Workspace(root=workspace), registry)
    summary.show(summary.of_models(opened.versions(newest), opened.history()[-newest:]))


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
) -> None:
    """Show two registered versions side by side, and ask both about the same test images; nothing is promoted.

    The decision is the one that would be taken if the first were champion and the second challenged it.
    """
    from bincount import preflight
    from bincount.tracking.connection import open_existing

    job = Job(
        data=_whole(DataConfig, data),
        registry=registry,
        promotion=_whole(PromotionConfig, promotion),
        workspace=workspace,
    )
    preflight.check_comparison(job, device)
    preflight.check_models(job, [first, second])
    with _flow_runs(registry, workspace):
        from flows import promote as flow
        from flows import summary

        opened = open_existing(Workspace(root=workspace), registry)
        pair = [opened.find(first), opened.find(second)]
        first, second = (str(each.version) for each in pair)  # whatever an alias does meanwhile
        decision = flow.compare(first, second, **_sections(job), device=device)
        names = [f"version {each.version}" for each in pair]
        tables = summary.of_versions(*pair, [opened.runs.read_params(each.run_id) for each in pair])
        summary.show(tables | summary.of_comparison(decision, *names))
        verdict = "would take" if decision.promote else "would not take"
        print(f"{names[1].capitalize()} {verdict} the place of {names[0]} as champion: {decision.reason}")


@app.command(sort_key=8)
def promote(
    model: Annotated[str, Parameter(help="challenger, or a version's number")] = "challenger",
    *,
    data: Dataset = THE_DATASET,
    promotion: Promotion = PromotionConfig(),
    registry: Registry = RegistryConfig(),
    device: Device = "auto",
    workspace: Root = DEFAULT_WORKSPACE,
) -> None:
    """Make a registered version champion if it counts better than the one there is, or with --force anyway."""
    from bincount import preflight

    job = Job(data=_whole(DataConfig, data), registry=registry, promotion=promotion, workspace=workspace)
    preflight.check_comparison(job, device)
    preflight.check_models(job, [model])
    with _flow_runs(registry, workspace):
        from flows import promote as flow
        from flows import summary

        summary.show(summary.of_decision(flow.promote(model, **_sections(job), device=device)))


@app.command(sort_key=9)
def rollback(
    *,
    reason: Annotated[str, Parameter(help="why, for those who look at the registry later")] = "asked for",
    registry: Registry = RegistryConfig(),
    workspace: Root = DEFAULT_WORKSPACE,
) -> None:
    """Put the champion before this one back; what is rolled back is not promoted again but by `promote --force`."""
    from bincount.tracking.connection import open_existing
    from flows import summary
    from tasks.promotion import who

    opened = open_existing(Workspace(root=workspace), registry)
    opened.rollback(by=who(), reason=reason)
    summary.show(summary.of_models(opened.versions(5), opened.history()[-5:]))


@app.command(sort_key=10)
def demo(
    *,
    bins: Annotated[int, Parameter(help="how many bins to generate", validator=Number(gte=300))] = 3000,
    epochs: Annotated[int, Parameter(help="passes over the training images", validator=Number(gte=1))] = 15,
    folder: Annotated[Path, Parameter(help="where to write them, and for everything made of them")] = Path("demo"),
) -> None:
    """Run the whole job on synthetic bins: a small net at 64 pixels, in about two minutes on two cores."""
    from bincount.data import synthetic

    synthetic.generate(folder / "bucket", bins)
    run(
        data=DataConfig(source=str(folder / "bucket")),
        images=ImageConfig(image_size=64),
        training=TrainConfig(
            model="small",
            weights="none",
            epochs=epochs,
            min_crop=0.8,
            dropout=0.1,
            weight_decay=0.01,  # of three seeds with the default, which is for fine-tuning, one lost ten points
        ),
        workspace=folder,
    )


@app.command(sort_key=11)
def doctor(
    *,
    data: Dataset = THE_DATASET,
    quick: Annotated[bool, Parameter(negative="", help="compare sizes only, and read no image")] = False,
    services: Annotated[
        bool, Parameter(negative="", help="check servers, schedule, workers and runs instead of the dataset")
    ] = False,
    fix: Annotated[
        bool, Parameter(negative="", help="remove damaged bins, stray files and leftovers; not beside a prepare")
    ] = False,
    prefect_file: Annotated[Path, Parameter(help="the deployments, for --services --fix")] = DEFAULT_PREFECT_FILE,
    registry: Registry = RegistryConfig(),
    workspace: Root = DEFAULT_WORKSPACE,
) -> None:
    """List what is quarantined, and check the prepared dataset against itself; ends with 1 when there are problems.

    What --fix removes is fetched again by the next prepare. It never touches snapshots and splits. With --services it
    sets up again what `bincount bootstrap` does, lets a paused night go on, ends runs whose process is gone, and frees
    their slots.
    """
    if services:
        _examine_services(registry, workspace, prefect_file, fix)
        return
    from bincount.data.check import diagnose
    from bincount.data.repair import repair
    from flows import summary

    dataset = Workspace(root=workspace).dataset(_whole(DataConfig, data))
    diagnosis = diagnose(dataset, quick=quick)
    summary.show(summary.of_diagnosis(diagnosis))
    problems = diagnosis.problems
    if problems and fix:
        report = repair(dataset, diagnosis)
        summary.show(summary.of_repair(report))
        problems = report.left
    if problems:
        sys.exit(1)


@app.command(sort_key=12)
def export(
    *,
    folder: Annotated[Path, Parameter(help="where the class folders are to stand")],
    data: ToExport = ALL_CLASSES,
    by_split: BySplit = False,
    copy: Annotated[bool, Parameter(negative="", help="copy even where a hard link would do, as for editing")] = False,
    workspace: Root = DEFAULT_WORKSPACE,
) -> None:
    """Put the labelled images of the last snapshot into one folder a class, as torchvision's ImageFolder reads.

    --classes takes some of the snapshot's classes only. Run again, it brings what is missing or different.
    """
    from bincount.data import snapshots
    from bincount.data.export import to_folder
    from flows import summary

    data = _whole(DataConfig, data)
    snapshot = snapshots.latest(Workspace(root=workspace).dataset(data))
    exported = to_folder(
        snapshot, folder, classes=_chosen_classes(data), by_split=by_split, copy=copy, concurrency=data.concurrency
    )
    summary.show(summary.of_export(exported, str(folder)))


@app.command(sort_key=13)
def publish(
    *,
    to: Annotated[str, Parameter(help="bucket of your own, as s3://BUCKET[/PREFIX]")],
    to_endpoint: Annotated[
        str | None, Parameter(help="URL of another S3-compatible server [default: AWS_ENDPOINT_URL_S3, else AWS]")
    ] = None,
    to_region: Annotated[
        str | None,
        Parameter(help="AWS region of that bucket [default: AWS_REGION or AWS_DEFAULT_REGION, else us-east-1]"),
    ] = None,
    data: ToExport = ALL_CLASSES,
    by_split: BySplit = False,
    workspace: Root = DEFAULT_WORKSPACE,
) -> None:
    """Upload the same class folders to a bucket of your own, signed in as boto3 is: environment, profile or role.

    --classes takes some of the snapshot's classes only. Run again, it uploads what is missing or different.
    """
    from bincount.data import snapshots
    from bincount.data.export import open_bucket, to_bucket
    from flows import summary

    data = _whole(DataConfig, data)
    snapshot = snapshots.latest(Workspace(root=workspace).dataset(data))
    bucket = open_bucket(to, to_endpoint, to_region)
    exported = to_bucket(
        snapshot, bucket, classes=_chosen_classes(data), by_split=by_split, concurrency=data.concurrency
    )
    summary.show(summary.of_export(exported, to))


@app.command(sort_key=14)
def gc(
    *,
    dry_run: Annotated[
        bool, Parameter(negative="", help="list what would go and what stays, and remove nothing")
    ] = False,
    retention: Retention = RetentionConfig(),
    registry: Servers = SERVERS,
    workspace: Root = DEFAULT_WORKSPACE,
) -> None:
    """Remove old trainings, tests and snapshots that no registered version needs, of whatever model.

    The latest snapshot of a dataset and trainings under way stay too. It asks the registry that the settings name.
    """
    from datetime import UTC, datetime

    from bincount.retention import plan, remove
    from bincount.tracking.connection import open_existing
    from flows import summary

    places = Workspace(root=workspace)
    opened = open_existing(places, _whole(RegistryConfig, registry))
    planned = plan(places, opened, retention, datetime.now(UTC))
    if dry_run:
        summary.show(summary.of_retention(planned))
    else:
        summary.show(summary.of_gc(remove(planned, opened), workspace))


@app.command(sort_key=15)
def bootstrap(
    *,
    prefect_file: Annotated[Path, Parameter(help="the deployments")] = DEFAULT_PREFECT_FILE,
    gpu: Annotated[
        bool,
        Parameter(
            negative="",
            help="the pool gpu and its deployments too, for workers with a GPU; once made, they are kept up",
        ),
    ] = False,
    gpu_template: Annotated[
        Path | None, Parameter(help="as --gpu, for jobs of a Kubernetes cluster by this template [default: processes]")
    ] = None,
    zombie_seconds: Annotated[
        float | None,
        Parameter(
            help="a run without a heartbeat for so long has crashed; a restart of the server may take it "
            "[default: as it is on the server, else 300]"
        ),
    ] = None,
) -> None:
    """Set up the Prefect server that PREFECT_API_URL names: work pools, automations and deployments.

    Run again, it puts right what differs. What has other names is left alone, and a paused night stays paused.
    BINCOUNT_SOURCE, BINCOUNT_WORKSPACE and MLFLOW_TRACKING_URI say where nights find images and keep models; what is
    not set stays as it is deployed.
    """
    from flows import bootstrap as setup
    from flows import summary

    changes = setup.bootstrap(prefect_file, gpu_template, zombie_seconds, gpu=gpu)
    summary.show({"On the Prefect server": setup.table(changes)})


@app.command(sort_key=16)
def notify(
    *,
    slack: Annotated[str | None, Parameter(help="incoming webhook of a Slack channel")] = None,
    email: Annotated[str | None, Parameter(help="whom to write to")] = None,
    smtp: Annotated[
        str | None, Parameter(env_var="BINCOUNT_SMTP", help="for --email: smtp://USER:PASSWORD@HOST:PORT, or smtps://")
    ] = None,
    sender: Annotated[str | None, Parameter(help="for --email: who writes [default: whom it is written to]")] = None,
    webhook: Annotated[str | None, Parameter(help="URL that gets JSON: kind, subject, text")] = None,
    only: Annotated[
        str, Parameter(help="of failed, crashed, late, skipped, promoted, drift, with commas between [default: all]")
    ] = "",
    off: Annotated[bool, Parameter(negative="", help="tell nobody any more")] = False,
) -> None:
    """Tell people of nights that failed, crashed, are late or were skipped, of new champions and of drift.

    The Prefect server sends it, and keeps the addresses encrypted. Without options it lists who is told what.
    """
    from flows import notify as news
    from flows import summary

    addresses = {"slack": slack, "email": email and news.email_url(email, smtp or "", sender), "webhook": webhook}
    addresses = {channel: address for channel, address in addresses.items() if address}
    if off:
        news.silence()
    elif addresses:
        news.tell(addresses, [kind.strip() for kind in only.split(",") if kind.strip()])
    elif only:
        raise SettingsError("--only needs --slack, --email or --webhook beside it")
    told = news.told()
    if told:
        summary.show({"Who is told": news.table(told)})
    else:
        print("Nobody is told anything; `bincount notify --help` says how.")


KEPT = {
    "prepare": "what was fetched and packed is kept",
    "train": "the last checkpoint is kept",
    "evaluate": "nothing was changed",
    "compare": "nothing was changed",
    "promote": "the champion's move is made as a whole or not at all",
    "rollback": "the champion's move is made as a whole or not at all",
    "predict": "nothing was changed",
    "models": "nothing was changed",
    "doctor": "nothing is removed by halves",
    "export": "the files that were brought are kept",
    "publish": "the files that were uploaded are kept",
    "gc": "what was removed is gone, and nothing is by halves",
    "bootstrap": "what was set up is kept",
    "demo": "what was generated, packed and trained up to the last checkpoint is kept",
}
KEPT_BY_A_RUN = "what was fetched, packed and trained up to the last checkpoint is kept"


def main() -> None:
    """Run the command line; an error that names its remedy is shown without a traceback."""
    kept = KEPT.get(next((word for word in sys.argv[1:] if not word.startswith("-")), ""), KEPT_BY_A_RUN)
    stacks.sign_in(os.environ)  # before Prefect reads its settings
    with interrupts.handled(f"{kept}, and the same command goes on from there"):
        try:
            app(usage.in_todays_words(sys.argv[1:]), exit_on_error=False, print_error=False)
        except CycloptsError as error:
            usage.fail(usage.explain(error))
        except ValidationError as error:
            usage.fail("\n".join(usage.explain_values(error)))
        except BincountError as error:
            usage.fail(str(error))


def _show_predictions(table: "pandas.DataFrame", output: str) -> None:
    if output == "csv":
        from bincount import text

        print(text.harmless_csv(table).to_csv(index=False), end="")
    elif output == "json":
        print(table.to_json(orient="records", indent=2))
    elif len(table):
        from flows import summary

        summary.show({"": summary.of_predictions(table)})


def _chosen_classes(data: DataConfig) -> Classes | None:
    """The classes that were asked for; a snapshot has its own, which need not be the default ones."""
    return data.class_set if "classes" in data.model_fields_set else None


def _check_services(registry: RegistryConfig | None, workspace: Path) -> None:
    from prefect.settings import get_current_settings

    from flows.server import client_access

    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(_without_traceback)
    places = Workspace(root=workspace)
    services.check_all(
        get_current_settings().api.url, places.tracking_uri(registry) if registry else "", client_access()
    )
    if registry:
        database.check(places.tracking_uri(registry), write=True)


def _examine_services(registry: RegistryConfig, workspace: Path, prefect_file: Path, fix: bool) -> None:
    from flows import health, summary

    findings = (health.mend if fix else health.examine)(Workspace(root=workspace), registry, prefect_file)
    summary.show({"Services": health.table(findings)})
    if problems := health.remedies(findings):
        print("What to do", *problems, sep="\n- ")
        sys.exit(1)


def _without_traceback(record: logging.LogRecord) -> bool:
    """Where an error names its remedy, the way to it through the code only hides the message."""
    if record.exc_info and isinstance(record.exc_info[1], BincountError):
        record.exc_info = None
    return True


if __name__ == "__main__":
    main()
