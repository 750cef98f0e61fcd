"""The command line. Heavy imports wait for the command that needs them, so that --help is quick."""

import logging
import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Group, Parameter
from cyclopts.validators import Number

from bincount import services
from bincount.errors import BincountError
from bincount.settings import (
    DEFAULT_WORKSPACE,
    DataConfig,
    ImageConfig,
    RegistryConfig,
    RunnerConfig,
    TrainConfig,
    Workspace,
)

app = App(
    name="bincount",
    help="Count the items in warehouse bins from photos: from a bucket of images to a registered model.",
    version_flags=[],
)

Data = Annotated[DataConfig, Parameter(name="*", group=Group("Data", sort_key=1))]
Images = Annotated[ImageConfig, Parameter(name="*", group=Group("Images", sort_key=2))]
Training = Annotated[TrainConfig, Parameter(name="*", group=Group("Training", sort_key=3))]
Registry = Annotated[RegistryConfig, Parameter(name="*", group=Group("Registry", sort_key=4))]
Runner = Annotated[RunnerConfig, Parameter(name="*", group=Group("Runner", sort_key=5))]
Root = Annotated[Path, Parameter(name="--workspace", help="folder that holds everything the pipeline makes")]
Model = Annotated[
    str,
    Parameter(name="--model", help="champion, challenger, a version's number, or a folder with model.safetensors"),
]


@app.command(sort_key=1)
def run(
    *,
    data: Data = DataConfig(),
    images: Images = ImageConfig(),
    training: Training = TrainConfig(),
    registry: Registry = RegistryConfig(),
    runner: Runner = RunnerConfig(),
    workspace: Root = DEFAULT_WORKSPACE,
) -> None:
    """Fetch, balance, split, pack, train, evaluate and register: the whole job.

    What an earlier run has done is not done again; an interrupted one goes on where it was.
    """
    _check_services(registry, workspace)
    from flows import run as flow
    from flows import summary

    finished = flow.run(data, images, training, registry, workspace, runner)
    summary.show(summary.of_run(finished.prepared, finished.model))
    summary.show_pages(Workspace(root=workspace).tracking_uri(registry))


@app.command(sort_key=2)
def prepare(
    *,
    data: Data = DataConfig(),
    images: Images = ImageConfig(),
    runner: Runner = RunnerConfig(),
    workspace: Root = DEFAULT_WORKSPACE,
) -> None:
    """Fetch what is new, deal the splits, and pack the images."""
    _check_services(None, workspace)
    from flows import prepare as flow
    from flows import summary

    summary.show(summary.of_prepare(flow.prepare(data, images, workspace, runner)))


@app.command(sort_key=3)
def train(
    *,
    data: Data = DataConfig(),
    images: Images = ImageConfig(),
    training: Training = TrainConfig(),
    registry: Registry = RegistryConfig(),
    snapshot: Annotated[str | None, Parameter(help="digest of the snapshot to train on [default: the last]")] = None,
    workspace: Root = DEFAULT_WORKSPACE,
) -> None:
    """Train on a prepared snapshot, evaluate on its test split, and register the model."""
    _check_services(registry, workspace)
    from flows import summary
    from flows import train as flow

    model = flow.train(data, images, training, registry, workspace, snapshot)
    summary.show(summary.of_train(model))
    summary.show_pages(Workspace(root=workspace).tracking_uri(registry))


@app.command(sort_key=4)
def evaluate(
    model: Model = "champion",
    *,
    data: Data = DataConfig(),
    registry: Registry = RegistryConfig(),
    device: Annotated[Literal["auto", "cpu", "cuda"], Parameter(help="where to compute")] = "auto",
    workspace: Root = DEFAULT_WORKSPACE,
) -> None:
    """Score a model on the test images of the last prepared snapshot."""
    _check_services(registry, workspace)
    from flows import evaluate as flow
    from flows import summary

    summary.show(summary.of_evaluation(flow.evaluate(model, data, registry, device, workspace)))


@app.command(sort_key=5)
def predict(
    images: Annotated[list[Path], Parameter(help="image files")],
    /,
    *,
    model: Model = "champion",
    output: Annotated[Literal["table", "csv", "json"], Parameter(help="csv and json have every probability")] = "table",
    registry: Registry = RegistryConfig(),
    workspace: Root = DEFAULT_WORKSPACE,
) -> None:
    """Count the items in image files."""
    from bincount.evaluation.predict import predict_files
    from bincount.registry import find_checkpoint

    with find_checkpoint(model, Workspace(root=workspace), registry) as checkpoint:
        counted = predict_files(checkpoint, images)
    if output == "csv":
        print(counted.to_csv(index=False), end="")
    elif output == "json":
        print(counted.to_json(orient="records", indent=2))
    else:
        from flows import summary

        summary.show({"": summary.of_predictions(counted)})


@app.command(sort_key=6)
def demo(
    *,
    bins: Annotated[int, Parameter(help="how many bins to draw", validator=Number(gte=300))] = 3000,
    epochs: Annotated[int, Parameter(help="passes over the training images", validator=Number(gte=1))] = 15,
    folder: Annotated[Path, Parameter(help="where to draw them, and for everything made of them")] = Path("demo"),
) -> None:
    """Draw bins and run the whole job on them: a small net at 64 pixels, in about two minutes on two cores."""
    from bincount.data import drawn

    drawn.draw(folder / "bucket", bins)
    run(
        data=DataConfig(source=str(folder / "bucket")),
        images=ImageConfig(image_size=64),
        training=TrainConfig(
            model="small", weights="none", epochs=epochs, learning_rate=3e-3, min_crop=0.8, dropout=0.1
        ),
        workspace=folder,
    )


def main() -> None:
    """Run the command line; an error that names its remedy is shown without a traceback."""
    try:
        app(sys.argv[1:])
    except BincountError as error:
        print(f"bincount: {error}", file=sys.stderr)
        sys.exit(1)


def _check_services(registry: RegistryConfig | None, workspace: Path) -> None:
    from prefect.settings import get_current_settings

    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(_without_traceback)
    services.check_all(
        get_current_settings().api.url, Workspace(root=workspace).tracking_uri(registry) if registry else ""
    )


def _without_traceback(record: logging.LogRecord) -> bool:
    """Where an error names its remedy, the way to it through the code only hides the message."""
    if record.exc_info and isinstance(record.exc_info[1], BincountError):
        record.exc_info = None
    return True


if __name__ == "__main__":
    main()
