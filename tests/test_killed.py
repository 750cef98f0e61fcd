"""A sync that is killed again and again ends as an unbroken one; and one of the whole bucket needs little memory."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import obstore
import pyarrow as pa
import pytest
from bins import jpeg, record
from faulty_s3 import FaultyS3

from bincount.data import bins, fetch, source, sync
from bincount.settings import DataConfig

NUM_BINS = 600
BATCH = 50
NUM_PUBLIC_BINS = 535_000


def work(config: str, dataset: str, pause_at: str) -> None:
    """A process that is to be killed: a sync as the flow does it, which may stop for ever at one point."""
    sync.BATCH = BATCH
    if pause_at == "renaming a file":
        _pause_from_call(20, "replace", Path(dataset))
    if pause_at == "deleting merged parts":
        _pause_from_call(3, "unlink", Path(dataset))
    settings = DataConfig.model_validate_json(config)
    opened = source.open_source(settings)
    plan = sync.plan(Path(dataset), opened, settings)
    for number in range(plan.num_batches):
        fetch.fetch_batch(Path(dataset), opened, plan.batch(number), settings)
    if pause_at == "before the merge":
        _pause(Path(dataset))
    bins.merge(Path(dataset))


def plan_the_public_bucket(dataset: str) -> None:
    """Print what a listing as long as the public bucket's costs."""
    obstore.list = _pages
    sync._check_space = lambda *_: None  # nothing is fetched, so the disk need not have room for the bucket
    opened = source.Source(store=None, url="s3://bins", layout="bins")
    plan = sync.plan(Path(dataset), opened, DataConfig())
    # not ru_maxrss, which begins with the memory of the process that started this one
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(json.dumps({"num_new": plan.num_new, "peak_megabytes": int(peak.split()[1]) / 1000}))


def _pages(_store: object, prefix: str, **_: object) -> Iterator[pa.RecordBatch]:
    folder = prefix.rstrip("/")
    suffix = {"bin-images": "jpg", "metadata": "json"}[folder]
    generator = np.random.default_rng(0)
    for start in range(1, NUM_PUBLIC_BINS + 1, 1000):
        digits = generator.bytes(16_000).hex()
        yield pa.record_batch(
            {
                "path": pa.array([f"{folder}/{number:05d}.{suffix}" for number in range(start, start + 1000)]),
                "last_modified": pa.array(np.full(1000, "2020-01-01", "M8[us]"), pa.timestamp("us", "UTC")),
                "size": pa.array(np.arange(40_000, 41_000, dtype=np.uint64)),
                "e_tag": pa.array([f'"{digits[at : at + 32]}"' for at in range(0, 32_000, 32)]),
                "version": pa.nulls(1000, pa.string()),
            }
        )


def _pause_from_call(number: int, name: str, dataset: Path) -> None:
    original, calls = getattr(Path, name), iter(range(1, sys.maxsize))
    setattr(Path, name, lambda *args, **kw: _pause(dataset) if next(calls) >= number else original(*args, **kw))


def _pause(dataset: Path) -> None:
    dataset.with_name("paused").touch()
    while True:
        time.sleep(60)


@contextmanager
def running(function: str, *arguments: str) -> Iterator[subprocess.Popen]:
    """A function of this file in a process of its own, which does not outlive the block."""
    code = f"import sys, test_killed; test_killed.{function}(*sys.argv[1:])"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], env=environment, stdout=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def run(server: FaultyS3, dataset: Path) -> None:
    with running("work", server.config().model_dump_json(), str(dataset), "") as process:
        assert process.wait(120) == 0


def kill(server: FaultyS3, dataset: Path, moment: Callable[[], bool], pause_at: str = "") -> None:
    """Start a sync and kill it at a moment."""
    with running("work", server.config().model_dump_json(), str(dataset), pause_at) as process:
        deadline = time.monotonic() + 120
        while not moment():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.kill()
        assert process.wait() == -9


def files(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def temporary(folder: Path) -> list[Path]:
    return [file for file in folder.rglob(".*") if sync.TEMPORARY.fullmatch(file.name)]


@pytest.fixture(scope="module")
def objects() -> dict[str, bytes]:
    numbers = range(NUM_BINS)
    images = {f"bin-images/{number:05d}.jpg": jpeg(number) for number in numbers}
    return images | {f"metadata/{number:05d}.json": record(number % 6, {"A": number % 6}) for number in numbers}


@pytest.mark.services
def test_a_sync_that_is_killed_again_and_again_ends_as_an_unbroken_one(tmp_path, objects):
    data = tmp_path / "data"

    def whole() -> set[str]:
        """The objects that are here; counting names is quicker than reading files."""
        found = (f"{folder.name}/{file.name}" for folder in data.glob("originals/*") for file in folder.iterdir())
        return {name for name in found if name in objects}

    def num_parts() -> int:
        return len(list(data.glob("parts/*.parquet")))

    moments = [
        (lambda: len(whole()) >= 30, ""),
        (lambda: num_parts() >= 3, ""),
        ((tmp_path / "paused").exists, "renaming a file"),
        (lambda: len(whole()) >= 700, ""),
        (lambda: len(whole()) == 2 * NUM_BINS and len(bins.read(data)) == NUM_BINS, "before the merge"),
        ((data / "bins.parquet").exists, "deleting merged parts"),
    ]
    with FaultyS3(objects) as server:
        for moment, pause_at in moments:
            already, asked = whole(), server.counts()
            kill(server, data, moment, pause_at)
            assert {name: server.counts().get(name) for name in already} == {name: asked[name] for name in already}
        left = temporary(data)
        for file in left:
            os.utime(file, (0, 0))  # as if the next sync came a night later
        run(server, data)
        wasted = sum(server.counts().values()) - len(objects)
        under_way = 4 * server.config().concurrency  # slots for what is not written yet, each of two objects
        assert wasted <= len(moments) * under_way
    with FaultyS3(objects) as server:
        run(server, tmp_path / "unbroken")
    assert left
    assert files(data / "originals") == files(tmp_path / "unbroken" / "originals") == objects
    names, expected = (
        {name for name in files(folder) if not name.startswith("plan-")} for folder in (data, tmp_path / "unbroken")
    )
    assert names == expected
    rows, unbroken = (bins.read(folder).drop(columns="arrived") for folder in (data, tmp_path / "unbroken"))
    assert rows.equals(unbroken)


def test_a_sync_leaves_the_temporary_files_of_another_that_may_be_under_way(tmp_path, objects):
    few = {name: body for name, body in objects.items() if "/0000" in name}
    with FaultyS3(few) as server:
        config = server.config()
        young, old = tmp_path / "originals/bin-images/.1.jpg.7.7", tmp_path / "parts/.1.parquet.7.7"
        for file in (young, old):
            file.parent.mkdir(parents=True)
            file.touch()
        os.utime(old, (0, 0))
        plan = sync.plan(tmp_path, source.open_source(config), config)
    assert temporary(tmp_path) == [young]
    assert plan.num_new == 10


@pytest.mark.services
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is Linux's VmHWM")
def test_planning_a_sync_of_the_whole_public_bucket_takes_less_than_400_megabytes(tmp_path):
    with running("plan_the_public_bucket", str(tmp_path)) as process:
        measured = json.loads(process.communicate(timeout=240)[0])
    assert measured["num_new"] == NUM_PUBLIC_BINS
    assert measured["peak_megabytes"] < 400
