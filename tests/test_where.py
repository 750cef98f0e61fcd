"""Where a bin was used: by its id and by its picture, in snapshots, trainings, versions and files."""

import json

import pandas as pd
import pytest
import servers
from bins import add_bin, add_thirty_bins, bring, jpeg
from verdicts import say

from bincount import forgetting
from bincount.data import assembly, bins, folds, packing, packs
from bincount.data.folds import Fold
from bincount.errors import DatasetError
from bincount.problem import EXTRA
from bincount.provenance import find_artifacts, trace
from bincount.reporting import console
from bincount.settings import DataConfig, ImageConfig, RegistryConfig, TrainConfig
from bincount.tracking import connection
from bincount.tracking.runs import RUN_TAG
from bincount.tracking.usage import find_versions
from bincount.training.run_folder import Request, write_request
from bincount.workspace import Workspace
from flows import bin_tables
from flows.cli import app

SMALL = ImageConfig(image_size=32)


def prepare(bucket, dataset):
    """Prepare a dataset as the prepare flow does, and return its snapshot."""
    config = DataConfig(source=str(bucket))
    bring(bucket, dataset)
    packing.pack_fetched(dataset, SMALL, config)
    return assembly.freeze_fetched(dataset, config)


@pytest.fixture
def bucket(tmp_path):
    add_thirty_bins(tmp_path / "bucket")
    for number in range(30, 60):  # so that each split has some
        add_bin(tmp_path / "bucket", f"{number * 40:05d}", number % 6)
    return tmp_path / "bucket"


@pytest.fixture
def workspace(tmp_path):
    return Workspace(root=servers.with_database(tmp_path / "workspace"))


@pytest.fixture
def dataset(bucket, workspace):
    return workspace.dataset(DataConfig(source=str(bucket)))


def one_of(snapshot, split):
    rows = snapshot.read()
    return rows.loc[rows["split"] == split, "image_id"].iloc[0]


def found_of(workspace, dataset, image_id, versions=()):
    return trace(workspace, dataset, [image_id], versions).bins[0]


def train(workspace, snapshot, settings="1" * 12, fold=None):
    """The folder of a training that was begun."""
    folder = workspace.root / "runs" / f"{snapshot.digest[:12]}-{settings}"
    folder.mkdir(parents=True)
    pack = packs.open_pack(snapshot.dataset, SMALL)
    write_request(Request(snapshot, pack, SMALL, TrainConfig(), folder, fold))
    return folder.name


def test_each_snapshot_has_a_use_with_split_label_and_whose_it_is(bucket, workspace, dataset):
    first = prepare(bucket, dataset)
    image_id = one_of(first, "train")
    before = first.read().set_index("image_id").loc[image_id]
    add_bin(bucket, image_id, (int(before["class_name"]) + 1) % 6, image=(dataset / before["path"]).read_bytes())
    second = prepare(bucket, dataset)
    found = found_of(workspace, dataset, image_id)
    assert [use.snapshot for use in found.uses] == [first.digest, second.digest]
    assert {use.split for use in found.uses} == {"train"}
    assert [int(use.label) for use in found.uses] == [
        int(before["class_name"]),
        (int(before["class_name"]) + 1) % 6,
    ]
    assert {use.label_source for use in found.uses} == {"record"}
    assert (found.status, found.copies, len(found.digests)) == ("ok", (), 1)


def test_whose_a_label_is_comes_from_the_manifest_where_it_says_so(bucket, workspace, dataset):
    from bincount.data import tables

    snapshot = prepare(bucket, dataset)
    path = snapshot.path / "manifest.parquet"
    image_id = one_of(snapshot, "train")
    tables.write_frame(tables.read_frame(path, "").assign(label_source="review"), path)
    assert found_of(workspace, dataset, image_id).uses[0].label_source == "review"


def test_a_picture_that_was_replaced_and_its_copies_are_followed_by_their_content(bucket, workspace, dataset):
    old, new = jpeg(501), jpeg(502)
    add_bin(bucket, "50000", 2, image=old)
    prepare(bucket, dataset)
    add_bin(bucket, "50000", 2, image=new)
    add_bin(bucket, "60000", 2, image=old)
    prepare(bucket, dataset)
    found = found_of(workspace, dataset, "50000")
    assert len(found.digests) == 2
    assert found.copies == ("60000",)
    assert [(use.bin_id, use.sha256 == found.uses[0].sha256) for use in found.uses] == [
        ("50000", True),
        ("50000", False),
        ("60000", True),
    ]
    other = found_of(workspace, dataset, "60000")
    assert other.copies == ("50000",)
    assert len(other.digests) == 1


def test_trainings_say_what_they_did_with_the_bin_and_which_left_its_fold_out(bucket, workspace, dataset):
    snapshot = prepare(bucket, dataset)
    in_train = one_of(snapshot, "train")
    own = int(folds.assign(snapshot, 2)[in_train])
    whole = train(workspace, snapshot)
    left_out = train(workspace, snapshot, "2" * 12, Fold(own, 2))
    other = train(workspace, snapshot, "3" * 12, Fold(3 - own, 2))
    uses = found_of(workspace, dataset, in_train).uses[0]
    assert uses.trainings == {whole: "trained on", left_out: "left out, as its fold", other: "trained on"}
    of_test = found_of(workspace, dataset, one_of(snapshot, "test")).uses[0]
    assert set(of_test.trainings.values()) == {"tested on"}
    assert set(found_of(workspace, dataset, one_of(snapshot, "val")).uses[0].trainings.values()) == {"chose the epoch"}


def test_a_bin_without_a_split_says_why_and_has_no_trainings(bucket, workspace, dataset):
    snapshot = prepare(bucket, dataset)
    train(workspace, snapshot)
    broken = found_of(workspace, dataset, "90000")
    assert (broken.status, broken.reason) == ("quarantined", "empty image")
    assert [(use.split, use.trainings, use.reason) for use in broken.uses] == [("", {}, "empty image")]
    assert EXTRA not in {use.split for use in found_of(workspace, dataset, "90040").uses}


def register(workspace, snapshot, training):
    """A version as a night makes it, but for its files, and its run."""
    config = RegistryConfig()
    connection.open_registry(workspace.tracking_uri(config), workspace.artifacts, config)
    registry = connection.open_existing(workspace, config)
    run_id = registry.runs.start(training, {}, {"snapshot": snapshot.digest})
    registry.champion_alias.history.ensure_model("as tests do")
    tags = {"snapshot": snapshot.digest, RUN_TAG: training}
    registry.client.create_model_version("bincount", f"file:///{training}", run_id, tags=tags)
    return registry, run_id


def test_versions_of_a_snapshot_are_all_named_and_those_that_were_trained_on_the_bin_apart(bucket, workspace, dataset):
    snapshot = prepare(bucket, dataset)
    for settings in ("1" * 12, "2" * 12):
        registry, _ = register(workspace, snapshot, train(workspace, snapshot, settings))
    registry.client.set_registered_model_alias("bincount", "champion", "2")
    versions = find_versions(registry)
    in_train = found_of(workspace, dataset, one_of(snapshot, "train"), versions)
    assert [str(version) for version in in_train.versions] == ["bincount version 1", "bincount version 2 (champion)"]
    assert in_train.trained_versions == in_train.versions
    in_test = found_of(workspace, dataset, one_of(snapshot, "test"), versions)
    assert (len(in_test.versions), in_test.trained_versions) == (2, ())
    add_bin(bucket, "70000", 2)
    prepare(bucket, dataset)  # a snapshot that no version was trained on
    assert found_of(workspace, dataset, "70000", versions).versions == ()


def test_files_of_runs_that_show_a_test_image_are_named(bucket, workspace, dataset, tmp_path):
    snapshot = prepare(bucket, dataset)
    tested = snapshot.read().query("split == 'test'")["image_id"].to_list()
    registry, run_id = register(workspace, snapshot, train(workspace, snapshot))
    mistakes = pd.DataFrame({"image_id": tested[:1], "recorded": "1"})
    (tmp_path / "test.html").write_text("pictures")
    (tmp_path / "worst_mistakes.png").write_bytes(b"png")
    for name in ("test.html", "worst_mistakes.png"):
        registry.runs.log_file(run_id, tmp_path / name)
    registry.runs.log_files(run_id, tables={"mistakes.json": mistakes})

    def shown(image_id):
        return [(each.path, each.is_sure) for each in find_artifacts(registry, found_of(workspace, dataset, image_id))]

    assert shown(tested[0]) == [("worst_mistakes.png", True), ("test.html", False)]
    assert shown(tested[1]) == [("test.html", False)]
    assert shown(one_of(snapshot, "train")) == []
    planned = forgetting.plan(workspace, dataset, tested[:1], registry)
    stays = bin_tables.of_what_stays(planned)["What stays, and is to be removed by hand"][""].to_list()
    assert any(run_id in line and "worst_mistakes.png" in line for line in stays)


def test_an_audit_page_may_show_any_bin_of_its_snapshot_also_one_without_a_split(bucket, workspace, dataset, tmp_path):
    snapshot = prepare(bucket, dataset)
    registry, run_id = register(workspace, snapshot, train(workspace, snapshot))
    for name in ("audit.html", "test.html"):
        (tmp_path / name).write_text("pictures")
        registry.runs.log_file(run_id, tmp_path / name)
    without_split = snapshot.read().query("split.isna() and sha256.notna()")["image_id"].iloc[0]
    for image_id in (one_of(snapshot, "train"), without_split):
        artifacts = find_artifacts(registry, found_of(workspace, dataset, image_id))
        assert [(each.path, each.is_sure) for each in artifacts] == [("audit.html", False)]
        planned = forgetting.plan(workspace, dataset, [image_id], registry)
        assert [each.path for each in planned.artifacts] == ["audit.html"]


def test_forget_names_the_versions_that_were_trained_on_the_bin(bucket, workspace, dataset):
    snapshot = prepare(bucket, dataset)
    registry, _ = register(workspace, snapshot, train(workspace, snapshot))
    tables = bin_tables.of_plan(forgetting.plan(workspace, dataset, [one_of(snapshot, "train")], registry))
    assert tables["Trained on them; a model does not unlearn"][""].to_list() == ["bincount version 1"]
    tested = bin_tables.of_plan(forgetting.plan(workspace, dataset, [one_of(snapshot, "test")], registry))
    assert "Trained on them; a model does not unlearn" not in tested


def test_places_of_the_picture_are_named_also_in_other_datasets(bucket, workspace, dataset, tmp_path):
    snapshot = prepare(bucket, dataset)
    image_id = one_of(snapshot, "test")
    folder = workspace.evaluation(snapshot.digest, "e" * 64)
    folder.mkdir(parents=True)
    pd.DataFrame({"image_id": [image_id]}).to_parquet(folder / "predictions.parquet")
    row = bins.read(dataset).set_index("image_id").loc[image_id]
    add_bin(tmp_path / "second", "12345", 2, image=(dataset / row["path"]).read_bytes())
    second = workspace.dataset(DataConfig(source=str(tmp_path / "second")))
    bring(tmp_path / "second", second)
    found = found_of(workspace, dataset, image_id)
    assert found.files == (
        f"datasets/{dataset.name}/{row['path']}",
        f"datasets/{dataset.name}/originals/metadata/{image_id}.json",
    )
    assert found.packs == (f"datasets/{dataset.name}/packs/32-squash-v2",)
    assert found.folders == (f"evaluations/{folder.name}",)
    assert found.elsewhere == (f"{second.name}: 12345",)
    assert found_of(workspace, dataset, one_of(snapshot, "val")).folders == ()


def test_a_damaged_snapshot_is_named_and_the_others_are_read(bucket, workspace, dataset):
    snapshot = prepare(bucket, dataset)
    add_bin(bucket, "70000", 2)
    second = prepare(bucket, dataset)
    (snapshot.path / "manifest.parquet").write_bytes(b"nothing")
    traced = trace(workspace, dataset, [one_of(second, "train")])
    assert [use.snapshot for use in traced.bins[0].uses] == [second.digest]
    assert len(traced.problems) == 1
    assert traced.problems[0].startswith(f"snapshot {snapshot.digest[:12]}: ")


def test_a_bin_of_an_old_snapshot_alone_is_found_and_one_of_none_names_those_that_are_like_it(
    bucket, workspace, dataset
):
    prepare(bucket, dataset)
    bins.merge(dataset)
    bins.remove(dataset, pd.Series(["00040"]))
    assert found_of(workspace, dataset, "00040").status == ""
    for typed, meant in (("80", "00080"), ("00080.jpg", "00080"), ("bin-images/00080.JPG", "00080")):
        with pytest.raises(DatasetError, match=rf"^{typed} is neither in .*; did you mean {meant}\?"):
            found_of(workspace, dataset, typed)
    with pytest.raises(DatasetError, match="correct the id, or --source"):
        found_of(workspace, dataset, "xyz")


def test_verdicts_are_shown_with_the_bin(bucket, workspace, dataset):
    snapshot = prepare(bucket, dataset)
    image_id, other = (one_of(snapshot, split) for split in ("train", "test"))
    say(dataset, (image_id, "3"), (other, "2"))
    [verdict] = found_of(workspace, dataset, image_id).verdicts
    assert (verdict["image_id"], verdict["count"]) == (image_id, "3")


def test_the_command_shows_tables_of_80_columns_and_json(bucket, workspace, dataset, capsys):
    add_bin(bucket, "50000", 2, image=jpeg(501))
    add_bin(bucket, "60000", 2, image=jpeg(501))
    snapshot = prepare(bucket, dataset)
    register(workspace, snapshot, train(workspace, snapshot))
    words = ["where", "50000", "--source", str(bucket), "--workspace", str(workspace.root)]
    app(words, result_action="return_value")
    shown = capsys.readouterr().out
    assert "same picture  60000" in shown
    assert snapshot.digest[:12] in shown
    assert "bincount version 1" in shown
    assert max(map(len, shown.splitlines())) <= 80
    app([*words, "--output", "json"], result_action="return_value")
    found = json.loads(capsys.readouterr().out)["bins"][0]
    assert found["copies"] == ["60000"]
    assert found["uses"][0]["snapshot"] == snapshot.digest
    assert found["versions"] == ["bincount version 1"]


def test_ids_with_markup_stay_text(workspace, tmp_path, capsys):
    for name in ("good/[red]x[red]", "bad/a<b>&amp;"):
        path = tmp_path / "folders" / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(len(name)))
    second = workspace.dataset(DataConfig(source=str(tmp_path / "folders")))
    bring(tmp_path / "folders", second)
    traced = trace(workspace, second, list(bins.read(second)["image_id"]))
    console.show(bin_tables.of_traced(traced, {}))
    shown = capsys.readouterr().out
    assert "[red]x[red].jpg" in shown
    assert "a<b>&amp;.jpg" in shown
