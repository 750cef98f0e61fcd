import hashlib
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from bins import add_bin, add_thirty_bins, bring, jpeg
from torchvision.datasets import ImageFolder
from verdicts import say

from bincount.data import assembly, bins, export
from bincount.data.export import Exported
from bincount.errors import DatasetError, ServiceUnavailable, SettingsError
from bincount.problem import Classes
from bincount.settings import DataConfig
from bincount.workspace import Workspace
from flows.cli import app


def prepare(bucket, dataset, classes="0..5", config=None):
    bring(bucket, dataset, config)
    return assembly.build(dataset, bins.read(dataset), Classes.parse(classes), str(bucket))


@pytest.fixture
def source(tmp_path):
    add_thirty_bins(tmp_path / "source")
    return tmp_path / "source"


@pytest.fixture
def snapshot(source, tmp_path):
    return prepare(source, tmp_path / "data")


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_image_folder_reads_an_export_with_its_classes_and_counts(snapshot, tmp_path):
    exported = export.to_folder(snapshot, tmp_path / "out")
    assert exported == Exported(30, 0, snapshot.labelled()["bytes"].sum(), 0)
    read = ImageFolder(tmp_path / "out")
    assert read.classes == ["0", "1", "2", "3", "4", "5"]
    assert [read.targets.count(label) for label in range(6)] == [5] * 6
    for row in snapshot.labelled().itertuples():
        assert (tmp_path / "out" / row.class_name / f"{row.image_id}.jpg").samefile(snapshot.dataset / row.path)


def test_splits_stand_above_the_classes_when_asked_for(snapshot, tmp_path):
    export.to_folder(snapshot, tmp_path / "out", by_split=True)
    expected = {f"{row.split}/{row.class_name}/{row.image_id}.jpg" for row in snapshot.labelled().itertuples()}
    assert files(tmp_path / "out") == expected
    assert ImageFolder(tmp_path / "out" / "train").classes == ["0", "1", "2", "3", "4", "5"]


def test_a_second_export_brings_only_what_is_missing_or_different(snapshot, tmp_path):
    export.to_folder(snapshot, tmp_path / "out", copy=True)
    size = (tmp_path / "out" / "0" / "00000.jpg").stat().st_size
    (tmp_path / "out" / "0" / "00000.jpg").write_bytes(b"x" * size)
    (tmp_path / "out" / "1" / "00040.jpg").write_bytes(b"x")
    (tmp_path / "out" / "2" / "00080.jpg").unlink()
    again = export.to_folder(snapshot, tmp_path / "out")
    assert (again.num_copied, again.num_present) == (3, 27)
    for row in snapshot.labelled().itertuples():
        there = tmp_path / "out" / row.class_name / f"{row.image_id}.jpg"
        assert there.read_bytes() == (snapshot.dataset / row.path).read_bytes()


def test_copies_replace_links_when_asked_for_and_can_be_edited(snapshot, tmp_path):
    export.to_folder(snapshot, tmp_path / "out")
    assert export.to_folder(snapshot, tmp_path / "out", copy=True).num_copied == 30
    assert export.to_folder(snapshot, tmp_path / "out", copy=True).num_copied == 0
    (tmp_path / "out" / "0" / "00000.jpg").write_bytes(b"edited")
    assert (snapshot.dataset / "originals" / "bin-images" / "00000.jpg").read_bytes() != b"edited"


def test_where_no_hard_link_can_be_made_files_are_copied(snapshot, tmp_path, monkeypatch):
    def refuse(self, target):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    assert export.to_folder(snapshot, tmp_path / "out").num_copied == 30
    assert len(ImageFolder(tmp_path / "out")) == 30


def test_a_killed_export_leaves_no_half_image_and_is_finished_by_the_next(snapshot, tmp_path, monkeypatch):
    def die(self, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", die)
        with pytest.raises(KeyboardInterrupt):
            export.to_folder(snapshot, tmp_path / "out", copy=True, concurrency=1)
    assert not list((tmp_path / "out").rglob("*.jpg"))
    assert export.to_folder(snapshot, tmp_path / "out") == Exported(30, 0, snapshot.labelled()["bytes"].sum(), 0)


def test_a_changed_label_moves_to_another_folder_and_the_old_file_counts_as_foreign(source, snapshot, tmp_path):
    export.to_folder(snapshot, tmp_path / "out")
    add_bin(source, "00040", 4)
    changed = prepare(source, tmp_path / "data")
    again = export.to_folder(changed, tmp_path / "out")
    assert (again.num_copied, again.num_present, again.num_foreign) == (1, 29, 1)
    assert {"1/00040.jpg", "4/00040.jpg"} <= files(tmp_path / "out")


def test_some_of_the_classes_are_exported_and_others_refused(snapshot, tmp_path):
    export.to_folder(snapshot, tmp_path / "out", classes=Classes.parse("1..3"))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["1", "2", "3"]
    with pytest.raises(SettingsError, match=r"has the classes 0, 1, 2, 3, 4, 5 and not 6; .* `bincount prepare`"):
        export.to_folder(snapshot, tmp_path / "out", classes=Classes.parse("5..6"))


def test_images_of_class_folders_keep_their_names_and_stay_apart(tmp_path):
    names = ["good/1.jpg", "good/sub/1.jpg", "good/sub/2.png", "bad/1.jpg", "bad/sub/1.jpg"]
    for number, name in enumerate(names):
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / name).write_bytes(jpeg(number))
    snapshot = prepare(tmp_path / "source", tmp_path / "data", "good,bad")
    assert export.to_folder(snapshot, tmp_path / "out").num_copied == 5
    assert files(tmp_path / "out") == set(names)


def split_folders(folder, names):
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(jpeg(number))
    return folder


@pytest.mark.parametrize("keep_splits", [False, True])
def test_one_name_in_several_split_folders_stays_apart_below_its_class(tmp_path, keep_splits):
    names = [f"{split}/{name}/{number}.jpg" for split in ("train", "val", "test") for name in "ab" for number in "12"]
    folder = split_folders(tmp_path / "source", names)
    bring(folder, tmp_path / "data")
    rows = bins.read(tmp_path / "data")
    snapshot = assembly.build(tmp_path / "data", rows, Classes.parse("a,b"), "x", keep_splits=keep_splits)
    export.to_folder(snapshot, tmp_path / "out")
    assert files(tmp_path / "out") == {f"{name}/{split}/{rest}" for split, name, rest in (n.split("/") for n in names)}
    exported = export.to_folder(snapshot, tmp_path / "by split", by_split=True)
    assert exported.num_copied == 12
    assert keep_splits is (files(tmp_path / "by split") == set(names))


def test_two_images_that_would_be_one_file_are_named_and_not_exported(snapshot, tmp_path, monkeypatch):
    rows = snapshot.labelled()
    rows.loc[[0, 1], "path"] = ["originals/bin-images/x.jpg", "originals/0/x.jpg"]
    rows.loc[[0, 1], "class_name"] = "0"
    monkeypatch.setattr(export.Snapshot, "labelled", lambda self: rows)
    with pytest.raises(DatasetError, match=r"originals/bin-images/x.jpg and originals/0/x.jpg .* as 0/x.jpg; rename"):
        export.to_folder(snapshot, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("class_name", "path"),
    [
        ("..", "originals/../x.jpg"),
        ("0", "originals/0/../../x.jpg"),
        ("", "originals//x.jpg"),
        ("a/..", "originals/a/x.jpg"),
    ],
)
def test_a_name_that_leads_out_of_the_target_is_not_exported(snapshot, tmp_path, monkeypatch, class_name, path):
    rows = snapshot.labelled()
    rows.loc[0, ["class_name", "path"]] = [class_name, path]
    monkeypatch.setattr(export.Snapshot, "labelled", lambda self: rows)
    with pytest.raises(DatasetError, match="would not be exported below its class"):
        export.to_folder(snapshot, tmp_path / "out")


@pytest.mark.parametrize("copy", [False, True])
def test_a_name_as_long_as_files_have_is_exported(tmp_path, copy):
    for number in range(3):
        add_bin(tmp_path / "source", f"{number:05d}", number % 2)
    add_bin(tmp_path / "source", "n" * 250, 1)
    snapshot = prepare(tmp_path / "source", tmp_path / "data")
    export.to_folder(snapshot, tmp_path / "out", copy=copy)
    assert f"1/{'n' * 250}.jpg" in files(tmp_path / "out")


def test_odd_keys_in_the_bucket_that_is_published_to_are_counted_as_foreign(
    snapshot, own_bucket, s3_client, s3_endpoint
):
    for key in ("some/where/a//b.jpg", "some/where/x/../y.jpg", "some/where/0/z.jpg"):
        s3_client.put_object(Bucket=own_bucket, Key=key, Body=b"x")
    bucket = export.open_bucket(f"s3://{own_bucket}/some/where", s3_endpoint)
    exported = export.to_bucket(snapshot, bucket)
    assert (exported.num_copied, exported.num_foreign) == (30, 3)
    again = export.to_bucket(snapshot, bucket)
    assert (again.num_copied, again.num_present, again.num_foreign) == (0, 30, 3)


def cut_off(path):
    os.truncate(path, 100)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut_off, flip])
@pytest.mark.parametrize("copy", [False, True])
def test_an_image_that_is_not_as_the_snapshot_says_is_not_exported(snapshot, tmp_path, copy, damage):
    damage(snapshot.dataset / "originals" / "bin-images" / "00040.jpg")
    with pytest.raises(DatasetError, match=r"00040.jpg is not as the snapshot says; run `bincount doctor --fix`"):
        export.to_folder(snapshot, tmp_path / "out", copy=copy)
    assert not (tmp_path / "out" / "1" / "00040.jpg").exists()


def test_a_folder_that_cannot_be_written_is_named(snapshot, tmp_path):
    (tmp_path / "out").write_bytes(b"a file")
    with pytest.raises(DatasetError, match=r"cannot export .*out.*(Not a directory|File exists)"):
        export.to_folder(snapshot, tmp_path / "out")


@pytest.fixture
def own_bucket(s3_client, s3_endpoint, monkeypatch, tmp_path_factory):
    """A private bucket, and the means to write to it."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tests")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "tests")
    name = f"own-{os.getpid()}-{tmp_path_factory.mktemp('bucket').name}"
    s3_client.create_bucket(Bucket=name)
    return name


def objects(s3_client, bucket):
    listed = s3_client.list_objects_v2(Bucket=bucket).get("Contents", [])
    return {entry["Key"]: entry["ETag"].strip('"') for entry in listed}


def test_publishing_uploads_the_class_folders(snapshot, own_bucket, s3_client, s3_endpoint):
    bucket = export.open_bucket(f"s3://{own_bucket}/some/where", s3_endpoint)
    published = export.to_bucket(snapshot, bucket)
    assert published == Exported(30, 0, snapshot.labelled()["bytes"].sum(), 0)
    assert objects(s3_client, own_bucket) == {
        f"some/where/{row.class_name}/{row.image_id}.jpg": hashlib.md5(
            (snapshot.dataset / row.path).read_bytes()
        ).hexdigest()
        for row in snapshot.labelled().itertuples()
    }


def test_publishing_again_uploads_nothing(snapshot, own_bucket, s3_endpoint, monkeypatch):
    bucket = export.open_bucket(f"s3://{own_bucket}", s3_endpoint)
    export.to_bucket(snapshot, bucket, by_split=True)
    monkeypatch.setattr(export.obstore, "put", None)
    assert export.to_bucket(snapshot, bucket, by_split=True) == Exported(0, 30, 0, 0)


def test_publishing_again_replaces_what_differs_and_counts_what_is_foreign(
    source, snapshot, own_bucket, s3_client, s3_endpoint, tmp_path
):
    bucket = export.open_bucket(f"s3://{own_bucket}", s3_endpoint)
    export.to_bucket(snapshot, bucket)
    published = objects(s3_client, own_bucket)
    size = (source / "bin-images" / "00000.jpg").stat().st_size
    s3_client.put_object(Bucket=own_bucket, Key="0/00000.jpg", Body=b"x" * size)
    s3_client.put_object(Bucket=own_bucket, Key="1/00040.jpg", Body=b"x")
    s3_client.delete_object(Bucket=own_bucket, Key="2/00080.jpg")
    again = export.to_bucket(snapshot, bucket)
    assert (again.num_copied, again.num_present, again.num_foreign) == (3, 27, 0)
    assert objects(s3_client, own_bucket) == published

    add_bin(source, "00040", 4)
    moved = export.to_bucket(prepare(source, tmp_path / "data"), bucket)
    assert (moved.num_copied, moved.num_present, moved.num_foreign) == (1, 29, 1)
    assert {"1/00040.jpg", "4/00040.jpg"} <= set(objects(s3_client, own_bucket))


def test_what_arrives_with_another_size_is_an_error(snapshot, own_bucket, s3_endpoint, monkeypatch):
    bucket = export.open_bucket(f"s3://{own_bucket}", s3_endpoint)
    put = export.obstore.put
    monkeypatch.setattr(export.obstore, "put", lambda store, key, content, **how: put(store, key, content[1:], **how))
    with pytest.raises(ServiceUnavailable, match="run again"):
        export.to_bucket(snapshot, bucket)


def test_an_image_that_is_not_as_the_snapshot_says_is_not_published(snapshot, own_bucket, s3_client, s3_endpoint):
    (snapshot.dataset / "originals" / "bin-images" / "00040.jpg").unlink()
    with pytest.raises(DatasetError, match=r"00040.jpg is not as the snapshot says"):
        export.to_bucket(snapshot, export.open_bucket(f"s3://{own_bucket}", s3_endpoint))
    assert "1/00040.jpg" not in objects(s3_client, own_bucket)


def test_a_bucket_that_is_missing_is_named(snapshot, own_bucket, s3_endpoint):
    with pytest.raises(SettingsError, match="there is no bucket s3://no-such-bucket; create it, or correct --to"):
        export.to_bucket(snapshot, export.open_bucket("s3://no-such-bucket", s3_endpoint))


@pytest.fixture
def answering():
    """Start a server that gives every request one answer; returns its URL."""
    servers = []

    def start(status, body):
        class Answer(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Answer))
        threading.Thread(target=servers[0].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[0].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "body", "remedy"),
    [
        (403, b"<Error><Code>AccessDenied</Code></Error>", "refuses access; sign in as one who may list it"),
        (400, b"<Message>the region 'us-east-1' is wrong; expecting 'eu-west-1'</Message>", "give it as --to-region"),
        (301, b"", "give it as --to-region"),
    ],
)
def test_a_bucket_that_refuses_is_explained(snapshot, own_bucket, answering, status, body, remedy):
    with pytest.raises(SettingsError, match=remedy):
        export.to_bucket(snapshot, export.open_bucket("s3://own", answering(status, body)))


def test_a_server_that_does_not_answer_is_worth_another_try(snapshot, own_bucket, free_port):
    with pytest.raises(ServiceUnavailable, match="try again later"):
        export.to_bucket(snapshot, export.open_bucket("s3://own", f"http://127.0.0.1:{free_port}"))


@pytest.mark.parametrize("address", ["folder", "s3://", "gs://bucket", "s3:///x"])
def test_an_address_that_is_no_bucket_is_refused(address):
    with pytest.raises(SettingsError, match=r"--to takes s3://BUCKET.* goes `bincount export`"):
        export.open_bucket(address)


@pytest.mark.parametrize("profile", [None, "no-such-profile"])
def test_without_credentials_it_is_said_how_to_sign_in(tmp_path, monkeypatch, profile):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    if profile:
        monkeypatch.setenv("AWS_PROFILE", profile)
    with pytest.raises(SettingsError, match="set AWS_PROFILE, or AWS_ACCESS_KEY_ID"):
        export.open_bucket("s3://own")


def test_the_commands_take_the_last_snapshot_of_the_source(
    source, own_bucket, s3_client, s3_endpoint, tmp_path, capsys
):
    config = DataConfig(source=str(source))
    prepare(source, Workspace(root=tmp_path / "work").dataset(config), "1..4")
    flags = ["--source", str(source), "--workspace", str(tmp_path / "work")]
    app(["export", *flags, "--folder", str(tmp_path / "out")], result_action="return_value")
    assert ImageFolder(tmp_path / "out").classes == ["1", "2", "3", "4"]
    app(["export", *flags, "--folder", str(tmp_path / "few"), "--classes", "1,2"], result_action="return_value")
    assert ImageFolder(tmp_path / "few").classes == ["1", "2"]
    capsys.readouterr()
    app(
        ["publish", *flags, "--to", f"s3://{own_bucket}", "--to-endpoint", s3_endpoint, "--by-split"],
        result_action="return_value",
    )
    assert "copied now" in capsys.readouterr().out
    assert len(objects(s3_client, own_bucket)) == 20


@pytest.mark.services
@pytest.mark.real
def test_the_list_of_the_student_projects_gives_their_class_folders(tmp_path):
    real = Path(os.environ["BINCOUNT_REAL_BINS"])
    only_listed = real / "lists" / "udacity_file_list.json"
    listed = {Path(name).stem for every in json.loads(only_listed.read_text()).values() for name in every}
    here = {path.stem for path in (real / "bin-images").iterdir()}
    snapshot = prepare(real, tmp_path / "data", config=DataConfig(source=str(real), only_listed=only_listed))
    assert set(snapshot.labelled()["image_id"]) == listed & here
    export.to_folder(snapshot, tmp_path / "train_data")
    read = ImageFolder(tmp_path / "train_data")
    assert read.classes == ["1", "2", "3", "4", "5"]
    assert {Path(path).stem for path, _ in read.samples} == listed & here


def test_a_photo_that_reviewers_put_into_another_class_is_exported_there_beside_one_of_its_name(tmp_path):
    for number in range(40):
        folder = tmp_path / "source" / ("good" if number % 2 else "bad")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number // 2}.jpg").write_bytes(jpeg(number))
    data = DataConfig(source=str(tmp_path / "source"), classes="good,bad")
    bring(tmp_path / "source", tmp_path / "data", data)
    say(tmp_path / "data", ("good/1.jpg", "bad"))

    export.to_folder(assembly.freeze_fetched(tmp_path / "data", data), tmp_path / "out")

    exported = files(tmp_path / "out")
    assert {"bad/good/1.jpg", "bad/1.jpg"} <= exported
    assert "good/1.jpg" not in exported
