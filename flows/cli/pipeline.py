"""Commands that make a model: the whole job, the nightly run, their parts, and the demo."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from bincount.errors import SettingsError
from bincount.model_settings import Task
from bincount.settings import (
    DEFAULT_WORKSPACE,
    DataConfig,
    DriftConfig,
    EvaluationConfig,
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
from flows.cli.flow_runs import flow_runs
from flows.cli.options import (
    THE_DATASET,
    ConfigFile,
    Data,
    Dataset,
    Drift,
    Evaluation,
    Images,
    Launch,
    Preset,
    Promotion,
    Registry,
    Retention,
    Retraining,
    Root,
    Runner,
    Training,
    sections,
    whole,
)
from flows.cli.program import app

DEMO_EPOCHS: dict[Task, int] = {"counting": 15, "object": 2, "quantity": 3, "change": 6}
PRODUCTS_ASKED = 20  # of a demo's questions: each is in many bins, and none looks like another


@app.command(sort_key=1)
def run(
    *,
    data: Data = DataConfig(),
    images: Images = ImageConfig(),
    training: Training = TrainConfig(),
    registry: Registry = RegistryConfig(),
    runner: Runner = RunnerConfig(),
    launch: Launch = LaunchConfig(),
    evaluation: Evaluation = EvaluationConfig(),
    promotion: Promotion = PromotionConfig(),
    workspace: Root = DEFAULT_WORKSPACE,
    preset: Preset = None,
    config: ConfigFile = None,
) -> None:
    """Fetch, pack, split, balance, train, evaluate, register and promote: the whole job.

    Nothing that an earlier run has done is done again; an interrupted run resumes where it was.
    """
    from bincount import preflight
    from bincount.data import source

    job = Job(
        data=data,
        images=images,
        training=training,
        registry=registry,
        launch=launch,
        evaluation=evaluation,
        promotion=promotion,
        runner=runner,
        workspace=workspace,
    )
    preflight.check_run(job)
    source.probe(data)
    with flow_runs(registry, workspace, "flows.run"):
        from bincount.reporting import console
        from flows import run as flow
        from flows import summary

        finished = flow.run(**sections(job))
        console.show(console.decision_last(summary.of_run(finished.prepared, finished.model)))
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
    evaluation: Evaluation = EvaluationConfig(),
    promotion: Promotion = PromotionConfig(),
    retention: Retention = RetentionConfig(),
    runner: Runner = RunnerConfig(),
    launch: Launch = LaunchConfig(),
    workspace: Root = DEFAULT_WORKSPACE,
    preset: Preset = None,
    config: ConfigFile = None,
) -> None:
    """Do one nightly run: fetch what is new, and train, evaluate, register and promote where that is enough."""
    from bincount import preflight
    from bincount.data import source

    job = Job(
        data=data,
        images=images,
        training=training,
        registry=registry,
        launch=launch,
        evaluation=evaluation,
        promotion=promotion,
        runner=runner,
        retraining=retraining,
        drift=drift,
        retention=retention,
        workspace=workspace,
    )
    preflight.check_run(job)
    source.probe(data)
    with flow_runs(registry, workspace, "flows.retrain"):
        from bincount.reporting import console
        from flows import retrain as flow
        from flows import summary

        result = flow.retrain(**sections(job))
        found = summary.of_nightly_run(result, retraining)
        console.show(console.decision_last(found, otherwise=summary.nightly_headline(result)))
        summary.show_pages(Workspace(root=workspace).tracking_uri(registry))


@app.command(sort_key=2)
def prepare(
    *,
    data: Data = DataConfig(),
    images: Images = ImageConfig(),
    runner: Runner = RunnerConfig(),
    workspace: Root = DEFAULT_WORKSPACE,
    preset: Preset = None,
    config: ConfigFile = None,
) -> None:
    """Fetch what is new, pack the images, and assign them to splits."""
    from bincount import preflight
    from bincount.data import source

    job = Job(data=data, images=images, runner=runner, workspace=workspace)
    preflight.check_prepare(job)
    source.probe(data)
    with flow_runs(None, workspace, "flows.prepare"):
        from bincount.reporting import console
        from flows import prepare as flow
        from flows import summary

        console.show(summary.of_prepare(flow.prepare(**sections(job))))


@app.command(sort_key=3)
def train(
    *,
    data: Dataset = THE_DATASET,
    images: Images = ImageConfig(),
    training: Training = TrainConfig(),
    registry: Registry = RegistryConfig(),
    launch: Launch = LaunchConfig(),
    evaluation: Evaluation = EvaluationConfig(),
    promotion: Promotion = PromotionConfig(),
    snapshot: Annotated[str | None, Parameter(help="digest of the snapshot to train on [default: the last]")] = None,
    workspace: Root = DEFAULT_WORKSPACE,
    preset: Preset = None,
    config: ConfigFile = None,
) -> None:
    """Train on a prepared snapshot, evaluate on its test split, register the model, and promote it if it is better."""
    from bincount import preflight

    job = Job(
        data=whole(DataConfig, data),
        images=images,
        training=training,
        registry=registry,
        launch=launch,
        evaluation=evaluation,
        promotion=promotion,
        workspace=workspace,
    )
    preflight.check_train(job, snapshot)
    with flow_runs(registry, workspace, "flows.train"):
        from bincount.reporting import console
        from flows import summary
        from flows import train as flow

        model = flow.train(**sections(job), snapshot=snapshot)
        console.show(console.decision_last(summary.of_train(model)))
        summary.show_pages(Workspace(root=workspace).tracking_uri(registry))


@app.command(sort_key=10)
def demo(
    *,
    problem: Annotated[
        Literal["bins", "boxes"],
        Parameter(help="bins: count their items; boxes: intact, dented, torn or wet, in one folder a condition"),
    ] = "bins",
    bins: Annotated[int, Parameter(help="how many bins or boxes to generate", validator=Number(gte=300))] = 3000,
    products: Annotated[
        int | None,
        Parameter(
            help="let the bins share so many products, 20 to 300, each of which is in many bins, instead of products "
            "that are in one bin each [default: 20 with a --task of questions]"
        ),
    ] = None,
    task: Annotated[
        Task, Parameter(help="what the model answers; questions are about the items of bins that share products")
    ] = "counting",
    epochs: Annotated[
        int | None,
        Parameter(
            help="passes over the training images, or questions [default: 15, and fewer over questions]",
            validator=Number(gte=1),
        ),
    ] = None,
    folder: Annotated[
        Path | None,
        Parameter(
            help="folder for them and everything made of them [default: demo, demo-boxes for boxes, or demo-products "
            "with --products or --task]"
        ),
    ] = None,
) -> None:
    """Generate bins or boxes and run the whole job on them: a small network of 64 pixels, in 1 to 5 minutes."""
    from bincount.data import synthetic

    if task != "counting" and products is None:
        products = PRODUCTS_ASKED
    if problem == "boxes":
        if products is not None:
            raise SettingsError(
                "--products and --task are of bins, and boxes hold no items; leave them out, or --problem boxes"
            )
        folder = folder or Path("demo-boxes")
        source = folder / "boxes"
        synthetic.generate_boxes(source, bins)
    else:
        folder = folder or Path("demo" if products is None else "demo-products")
        source = folder / "bucket"
        synthetic.generate(source, bins, num_products=products)
    run(
        data=DataConfig(source=str(source)),
        images=ImageConfig(image_size=64),
        training=TrainConfig(
            task=task,
            model="small",
            weights="none",
            epochs=epochs or DEMO_EPOCHS[task],
            min_crop=0.8,
            dropout=0.1,
            weight_decay=0.01,  # of three seeds with the default, which is for fine-tuning, one lost ten points
            **({} if task == "counting" else {"batch_size": 16, "learning_rate": 1e-3}),  # many steps in little time
        ),
        workspace=folder,
    )
