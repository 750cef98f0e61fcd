import functools
import gc
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import servers

from bincount import hints
from bincount.settings import DataConfig
from bincount.tracking import starting

# Small nets are quickest on one thread, most of all beside other busy processes; trainers inherit this.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("MLFLOW_TRACKING_URI", None)  # a server of somebody's own
# Ignored under nohup and in the background of a script, they would be by the commands, too, that tests stop with them.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)

LONGEST = (
    "test_unattended.py",
    "test_docs.py",
    "test_nightly_runs.py",
    "test_nightly_run_failures.py",
    "test_stack.py",
    "test_browser.py",
    "test_wheel.py",
    "test_champions.py",
    "test_benchmarks.py",
    "test_interrupted.py",
)


def pytest_configure(config):
    gc.set_threshold(50_000, 10, 10)  # collections among the imports find nothing
    servers.empty_databases = config.cache.mkdir("databases")


def pytest_collection_modifyitems(items):
    """Tests on real bins or weights need them; CI says where they are, so that there none is skipped.

    The files that take longest come first: with several at a time, none is left alone at the end.
    """
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(LONGEST)))
    for item in items:
        if item.get_closest_marker("services") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(1200))  # a busy machine takes three times as long
        for mark in item.iter_markers("real"):
            variable = mark.args[0] if mark.args else "BINCOUNT_REAL_BINS"
            if variable not in os.environ:
                item.add_marker(pytest.mark.skip(reason=f"set {variable} to where they are"))


def pytest_collection_finish():
    """Leave the modules out of garbage collections, each of which would go through their million objects."""
    gc.freeze()


def pytest_unconfigure():
    gc.unfreeze()  # else libraries report at the end what was never collected


@pytest.fixture(autouse=True)
def own_code_alone():
    """Take the code of models that earlier tests have loaded off the path: processes that a test spawns get it too."""
    sys.path[:] = [folder for folder in sys.path if Path(folder).name != "code"]


def seed_weights() -> None:
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture(scope="module", autouse=True)
def seeded_module():
    """Networks that the fixtures of a module build have the same random weights, in whatever order the tests run."""
    seed_weights()


@pytest.fixture(autouse=True)
def seeded(seeded_module):
    """Networks that a test builds have the same random weights, in whatever order the tests run."""
    seed_weights()


@pytest.fixture(autouse=True)
def own_hints_alone():
    """Forget where the command of an earlier test looked, which commands that are suggested would have."""
    hints.remember({}, lambda words: frozenset())


@pytest.fixture(scope="session", autouse=True)
def found_to_start() -> Iterator[Callable]:
    """Take for granted that versions start, which takes a process and seconds to find out; yields what finds out.

    The commands that tests start in processes of their own do find out.
    """
    with pytest.MonkeyPatch.context() as patch:
        find_out = starting.explain_failure
        patch.setattr(starting, "explain_failure", lambda registry, version, pictures=(): "")
        yield find_out


@pytest.fixture
def starts_versions(found_to_start, monkeypatch) -> None:
    """Start a version in a process of its own before it is promoted, as outside of tests."""
    monkeypatch.setattr(starting, "explain_failure", found_to_start)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One thread here and in trainers: equal results need equal numbers, and several are slow on a busy machine."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def free_port() -> int:
    """A loopback port that nothing listens on."""
    return servers.free_port()


@pytest.fixture
def small_disk(tmp_path, request):
    """A file system of its own, of eight megabytes, or of as many as its parameter says."""
    megabytes = getattr(request, "param", 8)
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        servers.give_up("needs to be allowed to mount a file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium."""
    from playwright.sync_api import sync_playwright

    program = servers.installed("chromium", "chromium")
    settings = {"executable_path": program, "args": ["--no-sandbox"]}  # which refuses root, as which CI runs
    with sync_playwright() as playwright, playwright.chromium.launch(**settings) as browser:
        yield browser


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    """The URL of a Prefect server that the flows of one module report to."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with servers.prefect_server(tmp_path_factory.mktemp("prefect")) as url, temporary_settings({PREFECT_API_URL: url}):
        yield url
        # The rest is sent while the server is there; else the interpreter waits for it at its exit.
        for worker in (EventsWorker, APILogWorker):
            worker.drain_all(timeout=20, at_exit=False)


@contextmanager
def train_here() -> Iterator[None]:
    """Train in this process: another takes longer to start than the small trainings of tests take.

    That is for flows, bincount.train and benchmarks that are loaded in the meantime.
    """
    from bincount import api
    from bincount.training import launch as launching
    from bincount.training.loop import fit
    from bincount.training.run_folder import Request, Trained, read_history
    from tasks import training

    def train(
        request: Request, on_epoch: Callable[[list[dict]], None] | None = None, launch: object = None, **_: object
    ) -> Trained:
        trained = fit(request)
        if on_epoch:
            on_epoch(read_history(request.folder))
        return trained

    with pytest.MonkeyPatch.context() as patch:
        for module in (training, api, launching):
            patch.setattr(module, "train_in_subprocess", train)
        yield


@pytest.fixture(scope="module")
def training_here() -> Iterator[None]:
    """What a module trains is trained in this process, as train_here says."""
    with train_here():
        yield


@pytest.fixture
def this_training_here() -> Iterator[None]:
    """What one test trains is trained in this process, as train_here says."""
    with train_here():
        yield


@pytest.fixture(scope="session", autouse=True)
def service_models_read_once() -> Iterator[None]:
    """Let all sessions of botocore in this process share what it reads of AWS's services, a tenth of a second each."""
    from botocore import session

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "create_loader", functools.cache(session.create_loader))
        yield


@pytest.fixture(scope="session")
def s3_endpoint():
    """An S3 API on loopback, for as long as the tests run."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_client(s3_endpoint):
    import boto3

    return boto3.client(
        "s3",
        endpoint_url=s3_endpoint,
        region_name="us-east-1",
        aws_access_key_id="tests",
        aws_secret_access_key="tests",
    )


@pytest.fixture
def bucket(s3_client, s3_endpoint, tmp_path_factory):
    """Upload a folder into a new public bucket; returns the settings that read it."""
    made = []

    def upload(folder: Path) -> DataConfig:
        name = f"bins-{os.getpid()}-{tmp_path_factory.mktemp('bucket').name}"
        s3_client.create_bucket(Bucket=name, ACL="public-read")
        made.append(name)
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                s3_client.put_object(
                    Bucket=name, Key=file.relative_to(folder).as_posix(), Body=file.read_bytes(), ACL="public-read"
                )
        return DataConfig(source=f"s3://{name}", endpoint=s3_endpoint)

    return upload
