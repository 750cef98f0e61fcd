"""Tests of what is removed from a workspace, and above all of what is not, with a real MLflow."""

import json
import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import servers
from filelock import FileLock
from mlflow import MlflowClient

from bincount import retention
from bincount.data import synthetic
from bincount.errors import ModelNotFound, ServiceUnavailable
from bincount.retention import plan, remove
from bincount.settings import DataConfig, ImageConfig, RegistryConfig, RetentionConfig, TrainConfig
from bincount.tracking import connection, lineage, registry
from bincount.tracking.packaging import MODEL_TAG
from bincount.training.run_folder import Trained
from bincount.training.spec import weights_digest
from bincount.workspace import Workspace
from flows.cli import app
from flows.run import run

NOW = datetime(2026, 11, 20, 3, 0, tzinfo=UTC)
MONTH = RetentionConfig(keep_days=30)
FIRST, SECOND, THIRD, LAST = (digit * 32 for digit in "abcd")  # snapshots


@pytest.fixture
def workspace(tmp_path):
    """A workspace with four snapshots, 100, 80, 60 and 40 days old, and a training and a test on each."""
    root = servers.with_database(tmp_path / "workspace")
    made = Workspace(root=root)
    connection.open_registry(made.tracking_uri(RegistryConfig()), made.artifacts, RegistryConfig())
    for digest, days in ((FIRST, 100), (SECOND, 80), (THIRD, 60), (LAST, 40)):
        add(root / "datasets/bins/snapshots" / digest, days, "manifest.parquet", "snapshot.json")
        train(root, digest, days)
        add(root / "evaluations" / f"{digest[:12]}-{'e' * 12}", days, "predictions.parquet")
    (root / "datasets/bins/snapshots/latest").write_text(LAST)
    for other in ("datasets/bins/bins.parquet", "datasets/bins/originals/00001.jpg", "runs/notes.txt", "keep.txt"):
        file(root / other, 500)
    add(root / "runs" / "by hand", 500, "model/model.safetensors")
    return made


def file(path: Path, days: float, content: str = "content") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    age(path, days)


def age(path: Path, days: float) -> None:
    then = (NOW - timedelta(days=days)).timestamp()
    os.utime(path, (then, then))


def add(folder: Path, days: float, *names: str) -> Path:
    for name in names:
        file(folder / name, days, content=f"{folder.name} {name}")
    return folder


def train(root: Path, digest: str, days: float, settings: str = "1" * 12, members: tuple[str, ...] = ()) -> Path:
    """The folder of a finished training, or of an ensemble of others."""
    folder = add(root / "runs" / f"{digest[:12]}-{settings}", days, "model/model.safetensors", "model/model.json")
    file(folder / ".lock", days, content="")
    Trained(folder, 1, 1, 0.5, 1.0, 10, 10, (0.5,) * len(members), members).write()
    age(folder / "trained.json", days)
    return folder


def opened(workspace: Workspace, model_name: str = "bincount") -> registry.Registry:
    return connection.open_existing(workspace, RegistryConfig(model_name=model_name))


def register(
    workspace: Workspace,
    training: Path,
    digest: str,
    model_name: str = "bincount",
    config: RegistryConfig | None = None,
) -> str:
    """A version as a night makes it, but for the files that MLflow keeps; its number."""
    reg = connection.open_existing(workspace, config) if config else opened(workspace, model_name)
    run_id = reg.runs.start(training.name, {}, {"snapshot": digest})
    reg.champion_alias.history.ensure_model("as tests do")
    tags = {"snapshot": digest, MODEL_TAG: weights_digest(training / "model")}
    return str(reg.client.create_model_version(model_name, training.as_uri(), run_id, tags=tags).version)


def run_of(workspace: Workspace, digest: str, settings: str = "1" * 12) -> Path:
    return workspace.root / "runs" / f"{digest[:12]}-{settings}"


def snapshot_of(workspace: Workspace, digest: str) -> Path:
    return workspace.root / "datasets/bins/snapshots" / digest


def evaluation_of(workspace: Workspace, digest: str) -> Path:
    return workspace.root / "evaluations" / f"{digest[:12]}-{'e' * 12}"


def everything(workspace: Workspace) -> set[Path]:
    return {path for path in workspace.root.rglob("*") if path.name not in ("mlflow.db", ".lock")}


def collect(workspace: Workspace, config: RetentionConfig = MONTH) -> retention.Removed:
    reg = opened(workspace)
    return remove(plan(workspace, reg, config, NOW), reg)


def test_what_no_version_needs_goes_and_what_one_needs_stays(workspace):
    register(workspace, run_of(workspace, SECOND), SECOND)
    before = everything(workspace)

    removed = collect(workspace)

    gone = [run_of(workspace, digest) for digest in (FIRST, THIRD, LAST)]
    gone += [evaluation_of(workspace, digest) for digest in (FIRST, SECOND, THIRD)]
    gone += [snapshot_of(workspace, digest) for digest in (FIRST, THIRD)]
    assert [place.path for place in removed.gone] == gone
    assert removed.left == ()
    assert before - everything(workspace) == {path for path in before if not {path, *path.parents}.isdisjoint(gone)}
    assert not list(workspace.root.rglob("*.gone"))


def test_the_plan_says_why_in_a_line_and_changes_nothing(workspace):
    register(workspace, run_of(workspace, SECOND), SECOND)
    before = everything(workspace)

    planned = plan(workspace, opened(workspace), MONTH, NOW)

    assert everything(workspace) == before
    reasons = {place.path: place.why for place in planned.staying}
    assert reasons == {
        run_of(workspace, SECOND): "bincount version 1 came from it",
        snapshot_of(workspace, SECOND): "bincount version 1 was trained on it",
        snapshot_of(workspace, LAST): "it is the latest of its dataset",
        evaluation_of(workspace, LAST): "it is on a latest snapshot",
    }
    first = next(place for place in planned.going if place.path == run_of(workspace, FIRST))
    assert (first.kind, round(first.days), first.why) == ("training", 100, "no registered version needs it")
    assert first.num_bytes == sum(path.stat().st_size for path in first.path.rglob("*") if path.is_file())


def test_what_gc_gives_back_is_what_was_there(workspace):
    register(workspace, run_of(workspace, SECOND), SECOND)
    sizes = {path: path.stat().st_size for path in everything(workspace) if path.is_file()}

    removed = collect(workspace)

    left = everything(workspace)
    assert removed.num_bytes == sum(size for path, size in sizes.items() if path not in left) > 0


def test_the_young_stay_with_the_snapshot_that_they_were_trained_on(workspace):
    register(workspace, run_of(workspace, LAST), LAST)
    age(run_of(workspace, FIRST) / "model/model.json", 29)
    removed = collect(workspace)
    assert run_of(workspace, FIRST).exists()
    assert snapshot_of(workspace, FIRST).exists()
    assert not run_of(workspace, SECOND).exists()
    assert evaluation_of(workspace, FIRST) in {place.path for place in removed.gone}

    collect(workspace, RetentionConfig(keep_days=29))
    assert not run_of(workspace, FIRST).exists()
    assert not snapshot_of(workspace, FIRST).exists()


def test_asking_whether_a_training_is_under_way_makes_it_no_younger(workspace):
    register(workspace, run_of(workspace, LAST), LAST)
    age(run_of(workspace, FIRST) / ".lock", 0)
    collect(workspace)
    assert not run_of(workspace, FIRST).exists()


@pytest.mark.parametrize("stage", ["Archived", "Production", "None"])
def test_a_version_of_any_stage_keeps_what_it_needs(workspace, stage):
    number = register(workspace, run_of(workspace, FIRST), FIRST)
    with pytest.warns(FutureWarning):
        opened(workspace).client.transition_model_version_stage("bincount", number, stage)
    collect(workspace)
    assert run_of(workspace, FIRST).exists()
    assert snapshot_of(workspace, FIRST).exists()


def test_versions_of_every_registered_model_keep_what_they_need(workspace):
    register(workspace, run_of(workspace, FIRST), FIRST, model_name="boxes")
    register(workspace, run_of(workspace, SECOND), SECOND, model_name="pallets")
    collect(workspace)
    for digest in (FIRST, SECOND):
        assert run_of(workspace, digest).exists()
        assert snapshot_of(workspace, digest).exists()
    assert not run_of(workspace, THIRD).exists()


def test_the_versions_of_another_experiment_count_too(workspace):
    other = RegistryConfig(experiment="elsewhere", model_name="other")
    reg = connection.open_registry(workspace.tracking_uri(other), workspace.artifacts, other)
    run_id = reg.runs.start(run_of(workspace, FIRST).name, {}, {})
    reg.champion_alias.history.ensure_model("as tests do")
    reg.client.create_model_version("other", run_of(workspace, FIRST).as_uri(), run_id, tags={"snapshot": FIRST})
    collect(workspace)
    assert run_of(workspace, FIRST).exists()


def test_more_versions_than_mlflow_gives_at_once_all_keep_what_they_need(workspace, monkeypatch):
    for digest in (FIRST, SECOND, THIRD):
        register(workspace, run_of(workspace, digest), digest)
    monkeypatch.setattr(lineage, "VERSIONS_AT_ONCE", 1)
    collect(workspace)
    assert all(run_of(workspace, digest).exists() for digest in (FIRST, SECOND, THIRD))


def test_what_only_a_deleted_version_needed_goes(workspace):
    number = register(workspace, run_of(workspace, FIRST), FIRST)
    register(workspace, run_of(workspace, SECOND), SECOND)
    opened(workspace).client.delete_model_version("bincount", number)
    collect(workspace)
    assert not run_of(workspace, FIRST).exists()
    assert not snapshot_of(workspace, FIRST).exists()
    assert run_of(workspace, SECOND).exists()


def test_a_version_whose_run_was_renamed_or_removed_and_whose_tags_were_taken_away_keeps_its_training(workspace):
    reg = opened(workspace)
    renamed, removed, bare = (
        (digest, register(workspace, run_of(workspace, digest), digest)) for digest in (FIRST, SECOND, THIRD)
    )
    for digest, _ in (renamed, removed):
        run_id = reg.client.search_runs([reg.experiment_id], f"tags.snapshot = '{digest}'")[0].info.run_id
        reg.client.set_tag(run_id, "mlflow.runName", "the good one")
        reg.client.delete_tag(run_id, "bincount.run")
        if digest == SECOND:
            reg.client.delete_run(run_id)
            reg.client._tracking_client.store._hard_delete_run(run_id)  # as `mlflow gc` does
    for tag in ("snapshot", MODEL_TAG):
        reg.client.delete_model_version_tag("bincount", bare[1], tag)

    collect(workspace)

    for digest in (FIRST, SECOND, THIRD):
        assert run_of(workspace, digest).exists(), digest
        assert snapshot_of(workspace, digest).exists(), digest


@pytest.mark.parametrize("taken", ["the tag of the version", "its run"])
def test_a_version_that_was_trained_elsewhere_keeps_its_snapshot(workspace, taken):
    training = run_of(workspace, FIRST)
    number = register(workspace, training, FIRST)
    register(workspace, run_of(workspace, LAST), LAST)
    reg = opened(workspace)
    if taken == "its run":
        run_id = reg.client.search_runs([reg.experiment_id], f"tags.snapshot = '{FIRST}'")[0].info.run_id
        reg.client._tracking_client.store._hard_delete_run(run_id)  # as `mlflow gc` does
    else:
        reg.client.delete_model_version_tag("bincount", number, "snapshot")
    shutil.rmtree(training)

    collect(workspace)
    assert snapshot_of(workspace, FIRST).exists()
    assert not snapshot_of(workspace, SECOND).exists()


def test_the_members_of_a_model_stay_with_it(workspace):
    members = [train(workspace.root, FIRST, 90, settings=digit * 12) for digit in "56"]
    mean = train(workspace.root, FIRST, 90, settings="7" * 12, members=tuple(member.name for member in members))
    register(workspace, mean, FIRST)

    planned = plan(workspace, opened(workspace), MONTH, NOW)
    reasons = {place.path: place.why for place in planned.staying}
    assert [reasons[member] for member in members] == ["bincount version 1 averages it"] * 2
    assert reasons[mean] == "bincount version 1 came from it"
    collect(workspace)
    assert all(member.exists() for member in members)
    assert not run_of(workspace, FIRST).exists()  # which is beside them, and no member


def test_of_a_model_that_does_not_say_which_its_members_are_every_training_beside_it_stays(workspace):
    mean = train(workspace.root, FIRST, 90, settings="7" * 12, members=("5" * 12,))
    written = json.loads((mean / "trained.json").read_text())
    del written["member_folders"], written["checksum"]  # of an older release
    file(mean / "trained.json", 90, json.dumps(written))
    assert Trained.read(mean).members == (0.5,)
    register(workspace, mean, FIRST)
    collect(workspace)
    assert run_of(workspace, FIRST).exists()
    assert not run_of(workspace, SECOND).exists()


def test_a_member_waits_for_the_others_that_are_trained_after_it(workspace):
    register(workspace, run_of(workspace, LAST), LAST)
    under_way = add(run_of(workspace, FIRST, "2" * 12), 0.1, "request.json")
    collect(workspace)
    assert run_of(workspace, FIRST).exists()
    assert under_way.exists()


def test_a_training_under_way_stays_however_old_and_its_snapshot_too(workspace):
    register(workspace, run_of(workspace, LAST), LAST)
    with FileLock(run_of(workspace, FIRST) / ".lock"):
        planned = plan(workspace, opened(workspace), MONTH, NOW)
        reasons = {place.path: place.why for place in planned.staying}
        assert reasons[run_of(workspace, FIRST)] == "a trainer is at work there"
        collect(workspace)
    assert (run_of(workspace, FIRST) / "model/model.safetensors").exists()
    assert snapshot_of(workspace, FIRST).exists()
    assert not run_of(workspace, SECOND).exists()


def test_a_training_that_is_taken_up_between_plan_and_removal_stays(workspace):
    register(workspace, run_of(workspace, LAST), LAST)
    reg = opened(workspace)
    planned = plan(workspace, reg, MONTH, NOW)
    with FileLock(run_of(workspace, FIRST) / ".lock"):
        removed = remove(planned, reg)
    left = {place.path: place.why for place in removed.left}
    assert left[run_of(workspace, FIRST)] == "another process is at work there"
    assert left[snapshot_of(workspace, FIRST)] == "a training that stays was trained on it"
    assert (run_of(workspace, FIRST) / "model/model.safetensors").exists()


def test_a_version_that_is_registered_between_plan_and_removal_keeps_what_it_needs(workspace):
    register(workspace, run_of(workspace, LAST), LAST)
    reg = opened(workspace)
    planned = plan(workspace, reg, MONTH, NOW)
    register(workspace, run_of(workspace, FIRST), FIRST, model_name="boxes")

    removed = remove(planned, reg)

    left = {place.path: place.why for place in removed.left}
    assert left == {
        run_of(workspace, FIRST): "boxes version 1 came from it",
        snapshot_of(workspace, FIRST): "boxes version 1 was trained on it",
    }
    assert (run_of(workspace, FIRST) / "model/model.safetensors").exists()


def test_a_version_that_is_registered_during_the_removal_keeps_what_is_left(workspace, monkeypatch):
    register(workspace, run_of(workspace, LAST), LAST)
    delete = retention._delete

    def delete_while_another_is_registered(path):
        if path == run_of(workspace, FIRST):
            register(workspace, run_of(workspace, SECOND), SECOND)
        delete(path)

    monkeypatch.setattr(retention, "_delete", delete_while_another_is_registered)
    collect(workspace)
    assert not run_of(workspace, FIRST).exists()
    assert run_of(workspace, SECOND).exists()
    assert snapshot_of(workspace, SECOND).exists()


def test_a_training_that_begins_during_the_removal_keeps_the_others_on_its_snapshot(workspace, monkeypatch):
    register(workspace, run_of(workspace, LAST), LAST)
    for settings in "2345":
        train(workspace.root, FIRST, 100, settings * 12)
    delete, deleted = retention._delete, []

    def delete_while_another_begins(path):
        deleted.append(path)
        delete(path)
        if len(deleted) == 2:
            (run_of(workspace, FIRST, "5" * 12) / "request.json").write_text("{}")

    monkeypatch.setattr(retention, "_delete", delete_while_another_begins)
    removed = collect(workspace)

    assert deleted[:2] == [run_of(workspace, FIRST, settings * 12) for settings in "12"]
    left = {place.path: place.why for place in removed.left}
    assert left[run_of(workspace, FIRST, "3" * 12)] == "another training on its snapshot is young"
    assert run_of(workspace, FIRST, "5" * 12).exists()
    assert snapshot_of(workspace, FIRST).exists()


def test_the_cost_of_a_removal_grows_with_the_number_of_places_and_not_with_its_square(workspace, monkeypatch):
    register(workspace, run_of(workspace, LAST), LAST)
    reg, calls = opened(workspace), []
    for owner, name in (
        (retention, "_measure"),
        (retention, "_reasons_to_stay"),
        (MlflowClient, "search_runs"),
    ):
        monkeypatch.setattr(owner, name, counted(getattr(owner, name), calls))
    search = MlflowClient.search_model_versions
    monkeypatch.setattr(MlflowClient, "search_model_versions", counted(search, calls))
    costs = []
    for number in (1, 8, 16, 32):  # the first takes what the workspace has beside them
        for settings in range(number):
            train(workspace.root, FIRST, 100, f"{settings:012x}")
            add(workspace.root / "evaluations" / f"{FIRST[:12]}-{settings:012x}", 100, "predictions.parquet")
        planned = plan(workspace, reg, MONTH, NOW)
        calls.clear()
        assert len(remove(planned, reg).gone) >= 2 * number
        costs.append(len(calls))

    assert costs[3] - costs[2] == 2 * (costs[2] - costs[1])
    assert costs[3] < 4 * 2 * 32  # of 64 places


def counted(call, calls: list):
    def count(*arguments, **options):
        calls.append(call)
        return call(*arguments, **options)

    return count


def test_a_snapshot_that_becomes_the_latest_between_plan_and_removal_stays(workspace):
    register(workspace, run_of(workspace, LAST), LAST)
    reg = opened(workspace)
    planned = plan(workspace, reg, MONTH, NOW)
    (snapshot_of(workspace, FIRST).parent / "latest").write_text(FIRST)
    remove(planned, reg)
    assert snapshot_of(workspace, FIRST).exists()
    assert snapshot_of(workspace, LAST).exists()  # which a version needs


def test_beside_a_prepare_no_snapshot_is_removed(workspace):
    register(workspace, run_of(workspace, LAST), LAST)
    with FileLock(workspace.root / "datasets/bins/.lock"):
        removed = collect(workspace)
    assert all(snapshot_of(workspace, digest).exists() for digest in (FIRST, SECOND, THIRD))
    assert {place.why for place in removed.left} == {"another process is at work there"}


def test_where_the_latest_snapshot_is_not_known_all_of_them_stay(workspace):
    register(workspace, run_of(workspace, LAST), LAST)
    (snapshot_of(workspace, FIRST).parent / "latest").unlink()
    collect(workspace)
    assert all(snapshot_of(workspace, digest).exists() for digest in (FIRST, SECOND, THIRD, LAST))


def test_a_killed_removal_leaves_nothing_that_looks_whole_and_the_next_ends_it(workspace, monkeypatch):
    register(workspace, run_of(workspace, LAST), LAST)

    def killed(path, *_, **__):
        (path / "model/model.safetensors").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            collect(workspace)
    assert not run_of(workspace, FIRST).exists()
    (half,) = workspace.root.rglob("*.gone")
    assert half.parent == workspace.root / "runs"
    age(half / "model/model.json", 0)  # it goes whatever its age
    train(workspace.root, FIRST, days=0)  # meanwhile it is trained again

    collect(workspace)
    assert not half.exists()
    assert run_of(workspace, FIRST).exists()


def test_what_a_killed_prepare_has_left_goes_when_it_is_old(workspace):
    register(workspace, run_of(workspace, LAST), LAST)
    old = add(snapshot_of(workspace, f".{'9' * 32}.4711"), 31, "manifest.parquet")
    young = add(snapshot_of(workspace, f".{'8' * 32}.4712"), 1, "manifest.parquet")
    collect(workspace)
    assert not old.exists()
    assert young.exists()


def test_weights_that_no_training_has_started_from_for_long_go(workspace):
    register(workspace, run_of(workspace, LAST), LAST)
    names = {"a" * 16: 31, "b" * 16: 29}
    for name, days in names.items():
        file(workspace.root / "weights" / f"{name}.safetensors", days)
    file(workspace.root / "weights" / "imagenet.safetensors", 500)
    collect(workspace)
    left = {path.name for path in (workspace.root / "weights").iterdir()}
    assert left == {f"{'b' * 16}.safetensors", "imagenet.safetensors"}


def test_a_link_is_not_followed(workspace, tmp_path):
    register(workspace, run_of(workspace, LAST), LAST)
    elsewhere = train(tmp_path / "elsewhere", FIRST, 500)
    run_of(workspace, FIRST, "2" * 12).symlink_to(elsewhere)
    collect(workspace)
    assert (elsewhere / "trained.json").exists()
    assert run_of(workspace, FIRST, "2" * 12).is_symlink()


def test_what_cannot_be_removed_is_reported_and_the_rest_goes(workspace, monkeypatch):
    register(workspace, run_of(workspace, LAST), LAST)
    rename = Path.rename

    def refuse(path, target):
        if path == run_of(workspace, FIRST):
            raise PermissionError(13, "Permission denied", str(path))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    removed = collect(workspace)
    assert [place.why[:24] for place in removed.left][:1] == ["it cannot be removed: [E"]
    assert run_of(workspace, FIRST).exists()
    assert not run_of(workspace, SECOND).exists()


def test_two_at_once_remove_each_place_once(workspace):
    register(workspace, run_of(workspace, LAST), LAST)
    reg = opened(workspace)
    first, second = (plan(workspace, reg, MONTH, NOW) for _ in range(2))
    assert len(remove(first, reg).gone) == len(first.going)
    late = remove(second, reg)
    assert late.gone == ()
    assert {place.why for place in late.left} == {"it is gone already"}
    assert not run_of(workspace, FIRST).exists()  # not even as an empty folder


def test_a_registry_that_knows_nothing_of_the_workspace_removes_nothing(workspace):
    register(workspace, run_of(workspace, LAST), LAST)
    opened(workspace).client.delete_registered_model("bincount")
    before = everything(workspace)
    with pytest.raises(ModelNotFound, match="has no version of anything in"):
        collect(workspace)
    assert everything(workspace) == before


def test_a_registry_that_was_never_written_removes_nothing(workspace, capsys):
    (workspace.root / "mlflow.db").unlink()
    before = everything(workspace)
    with pytest.raises(ModelNotFound, match="nothing was registered in sqlite"):
        app(["gc", "--workspace", str(workspace.root)], result_action="return_value")
    assert everything(workspace) == before


def test_a_registry_that_cannot_be_read_any_more_removes_nothing_more(workspace, monkeypatch):
    register(workspace, run_of(workspace, LAST), LAST)
    reg = opened(workspace)
    planned = plan(workspace, reg, MONTH, NOW)
    before = everything(workspace)
    (workspace.root / "mlflow.db").write_bytes(b"no database")
    for look in (lambda: remove(planned, reg), lambda: plan(workspace, reg, MONTH, NOW)):
        with pytest.raises(ServiceUnavailable, match="run `bincount gc` again when it answers"):
            look()
    assert everything(workspace) == before


@pytest.mark.services
def test_after_real_trainings_what_their_versions_need_is_there_and_nothing_is_trained_again(api, tmp_path):
    synthetic.generate(tmp_path / "bins", 300, size=(64, 64))
    data, images = DataConfig(source=str(tmp_path / "bins")), ImageConfig(image_size=32)
    quick = TrainConfig(model="small", weights="none", epochs=1)
    two, other = quick.model_copy(update={"members": 2}), quick.model_copy(update={"seed": 5})
    workspace = Workspace(root=servers.with_database(tmp_path / "workspace"))
    run(data=data, images=images, training=two, workspace=workspace.root)
    unneeded = run(data=data, images=images, training=other, workspace=workspace.root).model
    reg = opened(workspace)
    reg.client.delete_model_version("bincount", str(unneeded.version.version))
    for path in workspace.root.rglob("*"):
        age(path, 100)
    before = {path: path.stat().st_mtime_ns for path in workspace.root.glob("runs/*/model/model.safetensors")}

    removed = collect(workspace)

    assert [place.path for place in removed.gone] == [unneeded.trained.folder]
    assert len(before) == 4
    again = run(data=data, images=images, training=two, workspace=workspace.root).model
    assert again.version.version == 1
    after = {path: path.stat().st_mtime_ns for path in workspace.root.glob("runs/*/model/model.safetensors")}
    assert after == {path: then for path, then in before.items() if unneeded.trained.folder not in path.parents}


@pytest.mark.services
def test_a_server_that_is_away_removes_nothing(workspace, monkeypatch):
    root = workspace.root
    with servers.mlflow_server(root) as url:
        config = RegistryConfig(tracking_uri=url)
        register(workspace, run_of(workspace, LAST), LAST)
        reg = connection.open_existing(workspace, config)
        planned = plan(workspace, reg, MONTH, NOW)
        assert run_of(workspace, LAST) in {place.path for place in planned.staying}
    before = everything(workspace)
    with pytest.raises(ServiceUnavailable):
        remove(planned, reg)
    with pytest.raises(ServiceUnavailable, match="does not answer"):
        connection.open_existing(workspace, config)
    assert everything(workspace) == before


def test_the_command_lists_and_then_removes(workspace, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "250")
    register(workspace, run_of(workspace, SECOND), SECOND)
    command = ["gc", "--workspace", str(workspace.root), "--keep-days", "50"]
    before = everything(workspace)

    app([*command, "--dry-run"], result_action="return_value")

    shown = capsys.readouterr().out
    assert everything(workspace) == before
    assert f"runs/{run_of(workspace, FIRST).name}" in shown
    assert "no registered version needs it" in shown
    assert "bincount version 1 came from it" in shown

    app(command, result_action="return_value")
    assert "MB given back" in capsys.readouterr().out
    assert not run_of(workspace, FIRST).exists()
    assert run_of(workspace, SECOND).exists()


@pytest.fixture
def moved(workspace, tmp_path):
    """The workspace after a move to another registry, which has a version already: the settings that name it."""
    register(workspace, run_of(workspace, FIRST), FIRST)
    (servers.with_database(tmp_path / "server") / "mlflow.db").rename(tmp_path / "server.db")
    config = RegistryConfig(tracking_uri=f"sqlite:///{tmp_path}/server.db")
    connection.open_registry(config.tracking_uri, workspace.artifacts, config)
    register(workspace, run_of(workspace, LAST), LAST, config=config)
    return config


def test_after_a_move_to_another_registry_what_versions_in_the_workspace_need_stays(workspace, moved):
    before = (workspace.root / "mlflow.db").read_bytes()
    reg = connection.open_existing(workspace, moved)

    planned = plan(workspace, reg, MONTH, NOW)
    removed = remove(planned, reg)

    reasons = {place.path: place.why for place in planned.staying}
    assert reasons[run_of(workspace, FIRST)] == "bincount version 1 in mlflow.db came from it"
    assert reasons[snapshot_of(workspace, FIRST)] == "bincount version 1 in mlflow.db was trained on it"
    assert reasons[run_of(workspace, LAST)] == "bincount version 1 came from it"
    gone = {place.path for place in removed.gone}
    assert {run_of(workspace, SECOND), snapshot_of(workspace, SECOND)} <= gone
    assert run_of(workspace, FIRST).exists()
    assert snapshot_of(workspace, FIRST).exists()
    assert (workspace.root / "mlflow.db").read_bytes() == before
    assert not list(workspace.root.glob("mlflow.db?*"))


def test_after_a_move_a_version_of_the_workspace_that_is_registered_during_the_removal_keeps_what_it_needs(
    workspace, moved
):
    reg = connection.open_existing(workspace, moved)
    planned = plan(workspace, reg, MONTH, NOW)
    register(workspace, run_of(workspace, SECOND), SECOND)
    remove(planned, reg)
    assert run_of(workspace, SECOND).exists()
    assert snapshot_of(workspace, SECOND).exists()


def test_after_a_move_what_only_a_version_that_was_deleted_in_the_workspace_needed_goes(workspace, moved):
    opened(workspace).client.delete_model_version("bincount", "1")
    reg = connection.open_existing(workspace, moved)
    remove(plan(workspace, reg, MONTH, NOW), reg)
    assert not run_of(workspace, FIRST).exists()
    assert not snapshot_of(workspace, FIRST).exists()


def test_after_a_move_a_workspace_whose_versions_cannot_be_read_keeps_everything(workspace, moved):
    reg = connection.open_existing(workspace, moved)
    planned = plan(workspace, reg, MONTH, NOW)
    (workspace.root / "mlflow.db").write_bytes(b"no database")
    before = everything(workspace)
    for look in (lambda: remove(planned, reg), lambda: plan(workspace, reg, MONTH, NOW)):
        with pytest.raises(ModelNotFound, match="nothing is removed without; run `mlflow db upgrade sqlite"):
            look()
    assert everything(workspace) == before


def test_old_audits_go_but_for_those_on_a_latest_snapshot(workspace):
    root = workspace.root
    old, latest = (add(root / "audits" / f"{digest[:12]}-{'f' * 12}", 90, "audit.json") for digest in (FIRST, LAST))
    young = add(root / "audits" / f"{SECOND[:12]}-{'f' * 12}", 2, "audit.json")
    left_behind = add(root / "audits" / ".fetched-k3_x9a", 90, "model.safetensors")
    by_hand = add(root / "audits" / "kept by hand", 500, "audit.csv")
    places = {place.path: place for place in retention._find(workspace, NOW)}
    assert {old, latest, young, left_behind} <= set(places)
    assert by_hand not in places
    reasons = retention._reasons_to_stay(list(places.values()), lineage.Lineage({}, {}, {}), MONTH)
    assert {path for path in (old, latest, young, left_behind) if path not in reasons} == {old, left_behind}
    assert reasons[latest] == "it is on a latest snapshot"
