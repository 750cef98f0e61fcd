"""Make tests/data/workspace_e87d28a.tar.xz: a workspace as commit e87d28a left it, with that commit's own code.

    git worktree add --detach OLD e87d28a
    cd OLD && PREFECT_HOME=SOME_FOLDER PYTHONPATH=OLD python .../make_workspace_e87d28a.py FOLDER

It makes FOLDER/bucket, and with the old command line FOLDER/workspace and what its models predict, and packs them. No
stored file is written or edited here, but two functions of the old code are replaced while it runs:

- Its S3 client is sent to loopback although the settings name no endpoint. The name of a dataset's folder has the
  endpoint in it, and this way the dataset is found wherever the test's server listens.
- Networks are rounded to a few weights before they are saved, since others would not compress.

Afterwards the figures and pages of MLflow's runs are deleted, which are large, and the database is compacted.
"""

import io
import json
import lzma
import sqlite3
import sys
import tarfile
from collections.abc import Callable
from contextlib import closing, redirect_stdout
from pathlib import Path

BUCKET = "bincount-fixture"
SOURCE = ["--source", f"s3://{BUCKET}", "--image-size", "32"]
TRAINING = ["--model", "small", "--weights", "none", "--epochs", "1", "--batch-size", "16", "--device", "cpu"]


def add_bins(folder: Path, start: int, stop: int) -> None:
    """Put bins into the bucket's folder: grey bars, as many as there are items, in pictures that compress."""
    from PIL import Image

    for part in ("bin-images", "metadata"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for number in range(start, stop):
        shown = number - 100 if number % 150 == 0 else number  # some are copies of another
        quantity = shown % 7  # 6 is no class, and is trained on all the same
        picture = Image.new("L", (32, 32), 8 * (shown % 30) + 8)
        for bar in range(quantity):
            picture.paste(8 * (shown // 30) + 128, (4 * bar, 0, 4 * bar + 2, 30))
        picture.paste(8 * (shown // 30), (0, 30, 32, 32))
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=75)
        items = {f"A{shown}": {"asin": f"A{shown}", "name": None, "quantity": quantity}} if quantity else {}
        record = {"BIN_FCSKU_DATA": items, "EXPECTED_QUANTITY": quantity}
        image_id = f"{40 * number:05d}" if number % 20 else str(40 * number)
        image = b"" if number % 50 == 7 else file.getvalue()  # an empty file is set aside
        (folder / "bin-images" / f"{image_id}.jpg").write_bytes(image)
        (folder / "metadata" / f"{image_id}.json").write_text(json.dumps(record))


def serve(folder: Path) -> tuple[str, Callable[[], None]]:
    """Start an S3 server with an empty bucket; returns its URL and a function that uploads all files of the folder."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    client = boto3.client(
        "s3", endpoint_url=address, region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x"
    )
    client.create_bucket(Bucket=BUCKET, ACL="public-read")

    def upload() -> None:
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            key = file.relative_to(folder).as_posix()
            client.put_object(Bucket=BUCKET, Key=key, Body=file.read_bytes(), ACL="public-read")

    return address, upload


def train() -> None:
    """Run the old trainer on the request that is the last argument, but round what it saves."""
    import torch

    from bincount.training import train as trainer

    save = trainer.save

    @torch.no_grad()
    def save_rounded(folder: Path, model: torch.nn.Module, spec: object) -> None:
        for tensor in model.state_dict().values():
            if tensor.dim() == 4:  # a filter keeps three of its inputs, made stronger for those that are gone
                tensor[:, 3:] = 0
                tensor.copy_((tensor * 32).round() / 4)
            elif tensor.is_floating_point():
                tensor.copy_((tensor * 256).ceil() / 256)  # upwards, so that no variance is 0
        save(folder, model, spec)

    trainer.save = save_rounded
    del sys.argv[1]
    trainer.main()


def make(folder: Path) -> None:
    """Work with the old command line for some days in folder/workspace."""
    from mlflow import MlflowClient

    from bincount.data import source
    from bincount.training import launch
    from flows.cli import app

    bucket, workspace = folder / "bucket", folder / "workspace"
    endpoint, upload = serve(bucket)
    s3_store = source.S3Store
    source.S3Store = lambda *names, client_options, **settings: s3_store(
        *names, endpoint=endpoint, client_options=client_options | {"allow_http": True}, **settings
    )
    launch._command = lambda _, request: [sys.executable, __file__, "--train", str(request.resolve())]

    retrain = ["retrain", *SOURCE, *TRAINING, "--min-new-images", "1"]
    commands = [  # with the number of bins in the bucket before each
        (260, ["run", *SOURCE, *TRAINING, "--members", "2"]),
        (290, [*retrain, "--warm-start", "--force"]),
        (290, ["rollback", "--reason", "a mistake"]),
        (290, ["promote", "2", "--source", f"s3://{BUCKET}", "--force"]),
        (310, retrain),
        (320, ["prepare", *SOURCE]),
    ]
    start = 1
    for num_bins, command in commands:
        add_bins(bucket, start, num_bins + 1)
        upload()
        app([*command, "--workspace", str(workspace)], result_action="return_value", exit_on_error=False)
        start = num_bins + 1
    pictures = [str(bucket / "bin-images" / f"{40 * number:05d}.jpg") for number in range(1, 14)]
    pictures.remove(str(bucket / "bin-images" / "00280.jpg"))  # which is empty
    for model in ("champion", "1"):
        predict = ["predict", *pictures, "--model", model, "--output", "csv", "--workspace", str(workspace)]
        with open(folder / f"predictions-{model}.csv", "w") as file, redirect_stdout(file):
            app(predict, result_action="return_value", exit_on_error=False)
    # As somebody does in MLflow's pages: of the third version all but the latest snapshot is left for gc.
    MlflowClient(f"sqlite:///{workspace}/mlflow.db").delete_model_version("bincount", "3")


def pack(folder: Path) -> None:
    """Write workspace_e87d28a.tar.xz into the folder, without what is large and read by nobody."""
    for file in (folder / "workspace" / "mlflow-artifacts").rglob("*"):
        if file.suffix in (".png", ".html"):
            file.unlink()
    with closing(sqlite3.connect(folder / "workspace" / "mlflow.db", isolation_level=None)) as database:
        database.execute("VACUUM")
    preset = 9 | lzma.PRESET_EXTREME  # the versions have the same code: its dictionary reaches from one to the next
    with tarfile.open(folder / "workspace_e87d28a.tar.xz", "w:xz", preset=preset) as archive:
        for name in ("bucket", "workspace", "predictions-champion.csv", "predictions-1.csv"):
            archive.add(folder / name, name)


if __name__ == "__main__":
    if sys.argv[1] == "--train":
        train()
    else:
        make(Path(sys.argv[1]).resolve())
        pack(Path(sys.argv[1]).resolve())
