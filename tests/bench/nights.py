"""What a night with one image in a hundred new costs beside the first night, by `make bench-nights`.

The flow `prepare` (list, fetch, pack, split, balance) on 99 % of a folder of bins, and again on all of it, each time in
a new workspace; the ratio of the two, step by step. Then the same from a bucket with the folder's objects, an S3 API on
loopback (moto). Training is not in it: a night trains on all it has.
"""

import argparse
import os
import statistics
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import boto3
import pandas as pd
from servers import free_port, program, running

from bincount.data import source
from bincount.settings import DataConfig
from flows.prepare import prepare

BUCKET = "bins"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("source", help="folder of bins")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()

    compare(DataConfig(source=options.source), options.runs)
    with tempfile.TemporaryDirectory() as folder, moto(Path(folder)) as endpoint:
        upload(Path(options.source), endpoint)
        compare(DataConfig(source=f"s3://{BUCKET}", endpoint=endpoint), options.runs)


def compare(data: DataConfig, num_runs: int) -> None:
    num_bins = len(source.open_source(data).list_bins())
    nights = {"first night": round(0.99 * num_bins), "1 % new": num_bins}
    runs = []
    for _ in range(num_runs):
        with tempfile.TemporaryDirectory() as workspace:
            for night, limit in nights.items():
                prepared = prepare(data.model_copy(update={"limit": limit}), workspace=Path(workspace))
                runs.append({"night": night, "images": prepared.report.num_fetched, **prepared.timings})
    table = pd.DataFrame(runs).assign(together=lambda row: row.drop(columns=["night", "images"]).sum(axis=1))
    seconds = table.groupby("night", sort=False).median()
    print(f"\n{data.source}\n{seconds.round(2).to_string()}")
    first, later = (table.loc[table["night"] == night, "together"] for night in nights)
    ratios = [b / a for a, b in zip(first, later, strict=True)]
    print(f"1 % new / first night: {statistics.median(ratios):.1%} ({min(ratios):.1%} to {max(ratios):.1%})")


@contextmanager
def moto(folder: Path) -> Iterator[str]:
    """An S3 API on loopback; gives its URL."""
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    command = [program("moto_server"), "-H", "127.0.0.1", "-p", str(port)]
    with running(command, dict(os.environ), folder / "moto.log", f"{endpoint}/moto-api/"):
        yield endpoint


def upload(folder: Path, endpoint: str) -> None:
    """Put a folder's bins into a public bucket."""
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="bench",
        aws_secret_access_key="bench",
    )
    client.create_bucket(Bucket=BUCKET, ACL="public-read")

    def put(file: Path) -> None:
        key = file.relative_to(folder).as_posix()
        client.put_object(Bucket=BUCKET, Key=key, Body=file.read_bytes(), ACL="public-read")

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(put, [*folder.glob("bin-images/*"), *folder.glob("metadata/*")]))


if __name__ == "__main__":
    main()
