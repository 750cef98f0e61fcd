"""Mistakes that are told before anything starts, each with its remedy."""

import importlib.util
import socket
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bins import jpeg, record
from test_cli import refused

from bincount import preflight
from bincount.data import client, source
from bincount.data.bins import SCHEMA
from bincount.errors import BincountError, DatasetError, SettingsError, SourceError, SourceUnavailable
from bincount.settings import DataConfig, Job, LaunchConfig, PromotionConfig, RegistryConfig, RunnerConfig, TrainConfig
from bincount.training.device import choose_device
from bincount.workspace import Workspace
from deployments import temporary
from tasks.retry import is_transient


@pytest.fixture
def bins(tmp_path):
    for number in range(2):
        for name, content in ((f"bin-images/{number}.jpg", jpeg(number)), (f"metadata/{number}.json", record(number))):
            path = tmp_path / "bins" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return tmp_path / "bins"


@pytest.fixture
def no_server(monkeypatch):
    """The command line, where a server that is started is a failure."""
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setattr(temporary, "serving", lambda _: pytest.fail("a server was started"))


MISTAKES = {
    "no folder": (["--source", "nowhere"], "there is no folder nowhere; give --source"),
    "an empty source": (["--source", ""], "--source is empty; give an existing folder or s3://BUCKET"),
    "no layout": (["--source", "empty", "--weights", "none"], "empty holds no pictures in a layout that is known"),
    "no splits": (["--keep-splits", "--weights", "none"], "--keep-splits needs folders train/, val/ and test/"),
    "no address": (["--source", "gs://bucket"], "gs://bucket is neither s3://BUCKET nor a folder"),
    "no list": (["--only-listed", "ids.txt"], "ids.txt is no list of ids"),
    "no weights": (["--weights", "none.pth"], "there is no weights file none.pth; give `--weights`"),
    "weights of no model": (["--model", "small"], "there are no ImageNet weights for the model small"),
    "no GPU": (["--weights", "none", "--device", "cuda"], "this machine has no GPU that torch can use"),
    "a file as workspace": (["--workspace", "file"], "file is no folder, so that --workspace cannot be below it"),
    "below a file": (["--workspace", "file/below"], "file is no folder, so that --workspace cannot be below it"),
    "a port too large": (["--endpoint", "http://localhost:99999"], "a port is a number from 1 to 65535"),
    "no scheme": (["--endpoint", "localhost:9000"], "--endpoint localhost:9000 is no address of a server; write http:"),
    "no tracking server": (["--tracking-uri", "mlruns"], "--tracking-uri mlruns is no address; write an MLflow server"),
    "a scheduler without Dask": (["--dask-address", "tcp://a:1"], "--dask-address needs --runner dask beside it"),
    "a scheduler without port": (["--runner", "dask", "--dask-address", "tcp://a"], "--dask-address tcp://a is no"),
    "a meeting without port": (["--weights", "none", "--nnodes", "2", "--rendezvous", "a"], "--rendezvous tcp://a"),
    "RMSE of names": (["--weights", "none", "--classes", "a,b", "--metric", "rmse"], "--metric rmse needs classes"),
}


@pytest.mark.parametrize("above", [("",), ("train", "val", "test")], ids=["classes", "splits above classes"])
def test_a_class_without_a_folder_is_reported_before_anything_is_fetched_unless_it_was_fetched_before(tmp_path, above):
    for folder in above:
        for name in ("good", "defective"):
            path = tmp_path / "parts" / folder / name / "1.jpg"
            path.parent.mkdir(parents=True)
            path.write_bytes(jpeg(1))
    data = DataConfig(source=str(tmp_path / "parts"), classes="good,defectiv")
    workspace = Workspace(root=tmp_path / "workspace")

    with pytest.raises(DatasetError, match="no folder of the class defectiv; no class took: 'defective'; did you mean"):
        preflight.check_prepare(Job(data=data, workspace=workspace.root))

    named = data.model_copy(update={"classes": "good,defective"})
    preflight.check_prepare(Job(data=named, workspace=workspace.root))
    parts = workspace.dataset(data) / "parts"
    parts.mkdir(parents=True)
    row = {"image_id": "defectiv/1.jpg", "class_name": "defectiv", "status": "ok"}
    pq.write_table(pa.Table.from_pylist([row], SCHEMA), parts / "1.parquet")
    preflight.check_prepare(Job(data=data, workspace=workspace.root))


@pytest.mark.parametrize(("words", "told"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_reported_once_in_a_line_before_a_server_starts(
    words, told, bins, tmp_path, no_server, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    where = [] if "--source" in words else ["--source", str(bins)]
    said = refused(["run", *where, *words], monkeypatch, capsys)
    assert told in said
    assert len(said.splitlines()) == 1


MISTAKES_OF_A_SEARCH = {
    "members": (["--members", "3"], "a trial trains one network, not --members 3; leave it out"),
    "hosts": (["--nnodes", "2", "--rendezvous", "a:1"], "a trial trains on one host; leave --nnodes out"),
    "a budget without a price": (["--budget", "5"], "--budget needs the price of an hour of the machine; give --price"),
    "no space": (["--space", "none.toml"], "there is no file none.toml; correct --space"),
    "a pool without a server": (["--on-pool", "gpu"], "--on-pool needs a Prefect server that the workers ask; set"),
    "no snapshot": (["--no-fetch"], "run `bincount prepare`"),
}


@pytest.mark.parametrize(("words", "message"), MISTAKES_OF_A_SEARCH.values(), ids=MISTAKES_OF_A_SEARCH)
def test_a_mistake_in_a_search_is_reported_before_a_server_starts(
    words, message, bins, tmp_path, no_server, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    said = refused(["tune", "--source", str(bins), "--weights", "none", *words], monkeypatch, capsys)
    assert message in said
    assert len(said.splitlines()) == 1


def test_a_search_without_its_extra_says_what_to_install(bins, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "optuna" else find(name))
    with pytest.raises(SettingsError, match=r"needs optuna; run `pip install 'bincount-pipeline\[tune\]'`"):
        preflight.check_tune(Job(data=DataConfig(source=str(bins)), workspace=tmp_path))


@pytest.mark.parametrize("words", [["evaluate", "3"], ["compare", "1", "2"], ["promote", "7"], ["train"]])
def test_what_was_never_prepared_is_reported_before_a_server_starts(
    words, bins, tmp_path, no_server, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    told = refused([*words, "--source", str(bins)], monkeypatch, capsys)
    assert "run `bincount prepare`" in told
    assert len(told.splitlines()) == 1


def test_a_bucket_that_cannot_be_reached_is_reported_before_a_server_starts(
    tmp_path, no_server, monkeypatch, capsys, free_port
):
    monkeypatch.chdir(tmp_path)
    endpoint = f"http://127.0.0.1:{free_port}"
    said = refused(["prepare", "--source", "s3://bins", "--endpoint", endpoint], monkeypatch, capsys)
    assert said.startswith("bincount: s3://bins cannot be reached: ")
    assert "check the network, --source and --endpoint" in said
    assert not list(tmp_path.iterdir())


def test_a_bucket_that_never_answers_is_given_up_after_one_short_wait(monkeypatch):
    short = client.RetryPolicy(
        client.PROBE.connect, client.PROBE.timeout / 40, retries=2, retry_timeout=client.PROBE.timeout / 80
    )
    monkeypatch.setattr(client, "PROBE", short)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        config = DataConfig(source="s3://bins", endpoint=f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(SourceUnavailable, match="cannot be reached"):
            source.probe(config)
        silent.settimeout(0)
        silent.accept()
        with pytest.raises(BlockingIOError):  # asked once: what has taken the whole wait is not asked again
            silent.accept()


def test_the_longest_that_a_bucket_may_keep_silent_is_twenty_seconds():
    probe = client.PROBE
    assert (probe.retry_timeout + max(probe.connect, probe.timeout)).total_seconds() <= 20


def test_settings_that_can_work_pass(bins, tmp_path):
    job = Job(
        data=DataConfig(source=str(bins)),
        training=TrainConfig(model="small", weights="none"),
        registry=RegistryConfig(tracking_uri="postgresql+psycopg://me@db/mlflow"),
        launch=LaunchConfig(nnodes=2, rendezvous="train1.example.org:29400"),
        promotion=PromotionConfig(metric="rmse"),
        runner=RunnerConfig(runner="dask", dask_address="tcp://scheduler:8786"),
        workspace=tmp_path / "not" / "there" / "yet",
    )
    preflight.check_run(job)
    assert not (tmp_path / "not").exists()


@pytest.mark.parametrize("name", ["cdua", "", "cuda:0"])
def test_a_device_that_is_none_is_an_error_with_those_there_are(name):
    with pytest.raises(SettingsError, match=r"there is no device '.*'; choose from auto, cpu, cuda"):
        choose_device(name)


def test_a_folder_that_cannot_be_written_to_is_reported_with_the_reason(monkeypatch):
    if not Path("/proc/self").exists():
        pytest.skip("needs a file system that takes no files")
    with pytest.raises(SettingsError, match=r"/proc cannot be written to \(.+\); give --workspace"):
        preflight.check_writable(Path("/proc/new/workspace"))


def test_a_snapshot_that_is_not_there_is_reported_with_those_that_are(tmp_path):
    workspace, data = Workspace(root=tmp_path), DataConfig(source=str(tmp_path))
    there = workspace.dataset(data) / "snapshots" / ("ab" * 32) / "snapshot.json"
    there.parent.mkdir(parents=True)
    there.write_text("{}")
    for digest in ("cd" * 32, "../snapshots", ""):
        with pytest.raises(
            BincountError, match=r"no snapshot .*give the whole digest of one that is there \(abababababab"
        ):
            preflight.find_snapshot(Job(data=data, workspace=tmp_path), digest)


def test_what_a_flow_finds_wrong_at_its_start_is_not_tried_again():
    from prefect.states import Failed

    with pytest.raises(SourceError) as missing:
        preflight.check_prepare(Job(data=DataConfig(source="nowhere")))
    assert not is_transient(None, None, Failed(data=missing.value))


@pytest.mark.parametrize("name", ["run", "retrain", "tune", "prepare", "train", "evaluate", "promote", "compare"])
def test_a_flow_that_is_deployed_fails_as_early(name, tmp_path, monkeypatch):
    """Each flow is called without Prefect's engine: the first thing that it does is to look."""
    import flows.evaluate
    import flows.prepare
    import flows.promote
    import flows.retrain
    import flows.run
    import flows.train
    import flows.tune

    module = {"compare": flows.promote, "promote": flows.promote}.get(name) or getattr(flows, name)
    arguments = {
        "run": {"training": TrainConfig(weights="none.pth"), "data": DataConfig(source=str(tmp_path))},
        "retrain": {"training": TrainConfig(weights="none.pth"), "data": DataConfig(source=str(tmp_path))},
        "tune": {"training": TrainConfig(weights="none.pth"), "data": DataConfig(source=str(tmp_path))},
        "prepare": {"data": DataConfig(source="nowhere")},
        "train": {},
        "evaluate": {"device": "cdua"},
        "promote": {"device": "cdua"},
        "compare": {"first": "1", "second": "2", "device": "cdua"},
    }[name]
    with pytest.raises(BincountError, match=r"none\.pth|nowhere|bincount prepare|cdua"):
        getattr(module, name).fn(**arguments, workspace=tmp_path / "workspace")
    assert not (tmp_path / "workspace").exists()
