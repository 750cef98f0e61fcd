"""Fetching on a Dask cluster: a real one, with worker processes, against a real Prefect server."""

import os
import signal
import sys

import pandas as pd
import pytest
from bins import add_bin

from bincount.data import sync
from bincount.errors import ServiceUnavailable, SettingsError
from bincount.settings import DataConfig, ImageConfig, RunnerConfig
from flows import runners
from flows.prepare import prepare

IMAGES = ImageConfig(image_size=32)
NUM_BINS = 120


def test_dask_that_is_not_installed_is_an_error_that_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "prefect_dask", None)
    with pytest.raises(SettingsError, match=r"bincount-pipeline\[dask\]"):
        runners.open_runner(RunnerConfig(runner="dask"))


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:{port}", "somewhere"])
def test_a_dask_scheduler_that_does_not_answer_is_named_with_the_remedy(address, free_port):
    config = RunnerConfig(runner="dask", dask_address=address.format(port=free_port))
    with pytest.raises(ServiceUnavailable, match="--dask-address"):
        runners.open_runner(config)


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bins")
    for number in range(NUM_BINS):
        add_bin(folder, f"{number:05d}", number % 7)
    return folder


@pytest.fixture
def cluster(tmp_path):
    """Two worker processes that take batches of ten bins."""
    from distributed import LocalCluster

    preload = tmp_path / "small_batches.py"
    preload.write_text("from bincount.data import sync\nsync.BATCH = 10\n")
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, preload=[str(preload)]) as started:
        yield started


@pytest.fixture
def with_threads(api, bucket, tmp_path):
    return prepare(data=DataConfig(source=str(bucket)), images=IMAGES, workspace=tmp_path / "threads")


@pytest.mark.services
def test_two_dask_workers_make_the_same_snapshot_as_threads(with_threads, bucket, cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(sync, "BATCH", 10)
    runner = RunnerConfig(runner="dask", dask_address=cluster.scheduler_address)
    made = prepare(data=DataConfig(source=str(bucket)), images=IMAGES, runner=runner, workspace=tmp_path / "dask")
    assert made.plan.num_batches == NUM_BINS / 10
    assert made.report.num_fetched == NUM_BINS
    assert made.snapshot.digest == with_threads.snapshot.digest
    pd.testing.assert_frame_equal(made.snapshot.read(), with_threads.snapshot.read())


@pytest.mark.services
def test_a_killed_worker_loses_nothing(with_threads, bucket, cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(sync, "BATCH", 10)
    marker = tmp_path / "killed"
    data = DataConfig(source=str(bucket), concurrency=1)

    def kill_self_once(dask_worker):
        read = sync.Source.read

        def deadly(self, key):
            if "00055.jpg" in key and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return read(self, key)

        sync.Source.read = deadly

    with cluster.get_client() as client:
        client.run(kill_self_once)
    runner = RunnerConfig(runner="dask", dask_address=cluster.scheduler_address)
    made = prepare(data=data, images=IMAGES, runner=runner, workspace=tmp_path / "dask")
    assert marker.exists()
    assert made.snapshot.digest == with_threads.snapshot.digest
    assert made.report.num_fetched == NUM_BINS
