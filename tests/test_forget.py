"""Pictures that are taken away for good: gone from all that is here, never fetched again, and named where they stay."""

import shutil

import numpy as np
import pandas as pd
import pytest
from bins import add_bin, add_thirty_bins, bring, jpeg

from bincount import forgetting
from bincount.data import (
    assembly,
    bins,
    check,
    export,
    fetch,
    findings,
    forgotten,
    items,
    packing,
    packs,
    removal,
    repair,
    source,
    sync,
)
from bincount.errors import DatasetError
from bincount.settings import DataConfig, ImageConfig
from bincount.workspace import Workspace
from flows import bin_tables
from flows.cli import app, main

SMALL = ImageConfig(image_size=32)
ID = "00040"
FILES = (f"originals/bin-images/{ID}.jpg", f"originals/metadata/{ID}.json")


def prepare(bucket, dataset):
    """Prepare a dataset as the prepare flow does, and return its snapshot."""
    config = DataConfig(source=str(bucket))
    bring(bucket, dataset)
    packing.pack_fetched(dataset, SMALL, config)
    return assembly.freeze_fetched(dataset, config)


@pytest.fixture
def bucket(tmp_path):
    add_thirty_bins(tmp_path / "bucket")
    return tmp_path / "bucket"


@pytest.fixture
def workspace(tmp_path):
    return Workspace(root=tmp_path / "workspace")


@pytest.fixture
def dataset(bucket, workspace):
    dataset = workspace.dataset(DataConfig(source=str(bucket)))
    prepare(bucket, dataset)
    return dataset


def forget(workspace, dataset, *image_ids):
    planned = forgetting.plan(workspace, dataset, image_ids, None)
    forgetting.forget(planned)
    return planned


def row_of(dataset, image_id=ID):
    return bins.read(dataset).set_index("image_id").loc[image_id]


def pack_of(dataset):
    return packs.open_pack(dataset, SMALL)


def test_files_record_and_row_are_gone_and_the_row_says_so(workspace, dataset):
    digest = row_of(dataset)["sha256"]
    assert forget(workspace, dataset, ID).image_ids == (ID,)
    row = row_of(dataset)
    assert (row["status"], bins.reason_kind(row["reason"])) == ("quarantined", "forgotten")
    assert row[["class_name", "quantity", "items", "path", "sha256", "dhash"]].isna().all()
    assert not any((dataset / file).exists() for file in FILES)
    for path in [dataset / "bins.parquet", *(dataset / "parts").glob("*")]:
        assert digest.encode() not in path.read_bytes()


def test_a_bin_that_has_had_the_picture_once_and_holds_another_now_stays(bucket, workspace, dataset):
    """Else the picture that it holds now would go, and with it whatever else shows it."""
    same, other = jpeg(501), jpeg(502)
    for image_id, picture in (("50000", same), ("60000", same), ("70000", other)):
        add_bin(bucket, image_id, 2, image=picture)
    prepare(bucket, dataset)
    add_bin(bucket, "60000", 2, image=other)
    prepare(bucket, dataset)
    assert forget(workspace, dataset, "50000").image_ids == ("50000",)
    prepare(bucket, dataset)
    assert [row_of(dataset, image_id)["status"] for image_id in ("50000", "60000", "70000")] == [
        "quarantined",
        "ok",
        "ok",
    ]


def test_a_picture_that_was_taken_away_and_is_still_under_another_id_stops_no_prepare(bucket, dataset):
    forgotten.add(dataset, pd.DataFrame([{"image_id": "x", "sha256": row_of(dataset)["sha256"], "path": None}]))
    shutil.rmtree(dataset / "packs")
    assert ID not in set(prepare(bucket, dataset).labelled()["image_id"])


def test_the_pack_holds_zeros_in_its_place_and_the_others_are_as_before(workspace, dataset):
    before, digest = pack_of(dataset), row_of(dataset)["sha256"]
    row = before.locate([digest])[0]
    others = [each for each in range(len(before)) if each != row]
    expected, were = before.images.take(others), before.digests.to_pylist()
    forget(workspace, dataset, ID)
    pack = pack_of(dataset)
    assert len(pack) == len(before)
    assert not np.fromfile(pack.folder / packs.IMAGES, np.uint8).reshape(len(pack), -1)[row].any()
    assert np.array_equal(pack.images.take(others), expected)
    assert [each for each in pack.digests.to_pylist() if each != packs.NO_DIGEST] == [were[each] for each in others]


def test_a_training_that_has_the_pack_open_is_told_and_the_picture_does_not_come_back(workspace, dataset, tmp_path):
    shutil.copy(dataset / FILES[0], tmp_path / "kept.jpg")
    pack, digest = pack_of(dataset), row_of(dataset)["sha256"]
    row, images = pack.locate([digest])[0], pack.images
    assert images.take([row]).any()
    forget(workspace, dataset, ID)
    shutil.copy(tmp_path / "kept.jpg", dataset / FILES[0])  # as of a sync that was at work meanwhile
    with pytest.raises(DatasetError, match="taken away by `bincount forget`; run `bincount prepare`"):
        images.take([row])
    assert not pack_of(dataset).images._pixels[row].any()


def test_no_sync_fetches_it_again_even_when_it_changes_or_quarantined_ones_are_retried(workspace, dataset, bucket):
    forget(workspace, dataset, ID)
    add_bin(bucket, ID, 2)
    for config in (DataConfig(source=str(bucket)), DataConfig(source=str(bucket), retry_quarantined=True)):
        opened = source.open_source(config)
        planned = sync.plan(dataset, opened, config)
        assert ID not in [each for number in range(planned.num_batches) for each in planned.batch(number)["image_id"]]
        bring(bucket, dataset, config)
    assert bins.reason_kind(row_of(dataset)["reason"]) == "forgotten"
    assert not (dataset / FILES[0]).exists()


def test_a_limited_dataset_does_not_take_others_in_its_place(workspace, bucket):
    limited = DataConfig(source=str(bucket), limit=10)
    dataset = workspace.dataset(limited)
    bring(bucket, dataset, limited)
    before = set(bins.read(dataset)["image_id"])
    forget(workspace, dataset, min(before))
    bring(bucket, dataset, limited)
    assert set(bins.read(dataset)["image_id"]) == before


def test_a_new_bin_with_the_same_picture_is_quarantined_and_not_kept(workspace, dataset, bucket):
    picture = (dataset / FILES[0]).read_bytes()
    forget(workspace, dataset, ID)
    add_bin(bucket, "77777", 3, image=picture)
    report = bring(bucket, dataset)
    assert report.quarantined["forgotten"] == 1
    assert bins.reason_kind(row_of(dataset, "77777")["reason"]) == "forgotten"
    assert not list((dataset / "originals").rglob("77777*"))
    assert bring(bucket, dataset).quarantined["forgotten"] == 0  # it is not asked for each time


def test_what_is_fetched_while_it_is_taken_away_does_not_stay(workspace, dataset, bucket):
    config = DataConfig(source=str(bucket))
    add_bin(bucket, ID, 4)
    opened = source.open_source(config)
    planned = sync.plan(dataset, opened, config)
    assert planned.batch(0)["image_id"].to_list() == [ID]
    forget(workspace, dataset, ID)
    fetch.fetch_batch(dataset, opened, planned.batch(0), config)
    assert bins.reason_kind(row_of(dataset)["reason"]) == "forgotten"
    assert not any((dataset / file).exists() for file in FILES)


def test_the_next_snapshot_is_without_it_and_no_other_bin_moves(workspace, dataset, bucket):
    before = prepare(bucket, dataset).labelled().set_index("image_id")
    forget(workspace, dataset, ID)
    snapshot = prepare(bucket, dataset)
    after = snapshot.labelled().set_index("image_id")
    assert set(before.index) - set(after.index) == {ID}
    assert before["split"].drop(ID).equals(after["split"])
    row = snapshot.read().set_index("image_id").loc[ID]
    assert row["status"] == "quarantined"
    assert pd.isna(row["sha256"])


def test_training_and_export_of_an_old_snapshot_say_that_a_picture_is_gone(workspace, dataset, tmp_path):
    from bincount.data import snapshots

    snapshot = snapshots.latest(dataset)
    forget(workspace, dataset, ID)
    rows = snapshot.labelled()
    for use in (
        lambda: pack_of(dataset).locate(rows["sha256"]),
        lambda: packing.pack_snapshot(snapshot, SMALL),
        lambda: packing.pack_snapshot(snapshot, ImageConfig(image_size=64)),
        lambda: export.to_folder(snapshot, tmp_path / "exported"),
    ):
        with pytest.raises(
            DatasetError, match="a picture that was taken away by `bincount forget`; run `bincount prep"
        ):
            use()


def test_all_bins_with_the_same_picture_go_and_are_named_before(workspace, bucket):
    add_bin(bucket, "88888", 1, image=jpeg(7))
    add_bin(bucket, "99999", 1, image=jpeg(7))
    dataset = workspace.dataset(DataConfig(source=str(bucket)))
    prepare(bucket, dataset)
    planned = forget(workspace, dataset, "88888")
    assert planned.same_as == {"99999": "88888"}
    assert bins.reason_kind(row_of(dataset, "99999")["reason"]) == "forgotten"
    assert not list((dataset / "originals").rglob("99999*"))
    named = bin_tables.of_plan(planned)["Bins to be taken away"]
    assert named.to_dict("records")[1] == {"bin": "99999", "why": "the same picture as 88888"}


def test_an_earlier_picture_of_the_bin_goes_from_the_pack_too(workspace, dataset, bucket):
    earlier = row_of(dataset)["sha256"]
    add_bin(bucket, ID, 1, image=jpeg(12345))
    prepare(bucket, dataset)
    digests = {row_of(dataset)["sha256"], earlier}
    assert len(digests) == 2
    assert {each.encode() for each in digests} <= set(pack_of(dataset).digests.to_pylist())
    forget(workspace, dataset, ID)
    assert not {each.encode() for each in digests} & set(pack_of(dataset).digests.to_pylist())


def test_what_its_record_lists_goes_from_snapshots_too_and_the_others_stay(workspace, dataset):
    (path,) = dataset.glob(f"snapshots/*/{items.FILE}")
    before = pd.read_parquet(path)["image_id"]
    assert removal.find_remains(dataset) == []
    forgotten.add(dataset, pd.DataFrame({"image_id": [ID], "sha256": [None], "path": [None]}))
    assert removal.find_remains(dataset) == [path.relative_to(dataset).as_posix()]
    forget(workspace, dataset, ID)
    assert set(before) - set(pd.read_parquet(path)["image_id"]) == {ID}
    assert check.diagnose(dataset).problems == ()


def test_doctor_finds_nothing_wrong_afterwards_and_counts_it(workspace, dataset, bucket):
    forget(workspace, dataset, ID)
    assert check.diagnose(dataset).problems == ()
    assert check.diagnose(dataset).quarantined["forgotten"] == 1
    prepare(bucket, dataset)
    assert check.diagnose(dataset).problems == ()


def steps_of_a_removal(monkeypatch, stop_at):
    """Let the removal be killed at its nth write, and return how many it has done."""
    done = []
    for holder, name in ((bins, "append"), (bins, "merge"), (packs, "overwrite"), (forgotten, "add")):
        original = getattr(holder, name)

        def step(*arguments, original=original, **options):
            if len(done) == stop_at:
                raise KeyboardInterrupt
            done.append(original)
            return original(*arguments, **options)

        monkeypatch.setattr(holder, name, step)
    return done


@pytest.mark.parametrize("stop_at", range(6))
def test_a_removal_that_was_killed_anywhere_is_completed_by_the_same_command(
    workspace, dataset, bucket, monkeypatch, stop_at
):
    digest = row_of(dataset)["sha256"]
    evaluation = evaluation_of(workspace, dataset, [ID])
    with monkeypatch.context() as patch:
        steps_of_a_removal(patch, stop_at)
        with pytest.raises(KeyboardInterrupt):
            forget(workspace, dataset, ID)
    if stop_at:  # the tombstone is there: nothing brings it back meanwhile
        assert bring(bucket, dataset).num_fetched == 0
    forget(workspace, dataset, ID)
    assert bins.reason_kind(row_of(dataset)["reason"]) == "forgotten"
    assert not any((dataset / file).exists() for file in FILES)
    assert digest.encode() not in pack_of(dataset).digests.to_pylist()
    assert not evaluation.exists()
    assert check.diagnose(dataset).problems == ()
    assert len(forgotten.read_rows(dataset)) == len(forgotten.read_rows(dataset).drop_duplicates())


def test_doctor_names_what_a_killed_removal_has_left(workspace, dataset, monkeypatch):
    with monkeypatch.context() as patch:
        steps_of_a_removal(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            forget(workspace, dataset, ID)
    left = [problem for problem in check.diagnose(dataset).problems if problem.kind == findings.REMAINS]
    assert [problem.where for problem in left] == ["packs/32-squash-v2"]
    assert "run it again" in left[0].remedy
    repair.repair(dataset, check.diagnose(dataset))
    forget(workspace, dataset, ID)
    assert not check.diagnose(dataset).problems


def test_a_damaged_file_of_tombstones_stops_a_sync_and_is_named(workspace, dataset, bucket):
    forget(workspace, dataset, ID)
    path = dataset / forgotten.FILE
    data = bytearray(path.read_bytes())
    data[20] ^= 1
    path.write_bytes(data)
    with pytest.raises(DatasetError, match=r"forgotten.parquet is damaged .*restore it from a copy"):
        bring(bucket, dataset)
    assert (findings.REMAINS, forgotten.FILE) in [(each.kind, each.where) for each in check.diagnose(dataset).problems]


def evaluation_of(workspace, dataset, image_ids):
    """The folder of a test with these bins on the last snapshot of a dataset."""
    digest = (dataset / "snapshots" / "latest").read_text()
    folder = workspace.evaluation(digest, "e" * 64)
    folder.mkdir(parents=True)
    pd.DataFrame({"image_id": image_ids}).to_parquet(folder / "predictions.parquet")
    (folder / "test.html").write_text("pictures")
    return folder


def test_evaluations_with_the_bin_are_removed_and_the_others_stay(workspace, dataset):
    evaluation = evaluation_of(workspace, dataset, ["00080", ID])
    other = workspace.evaluation((dataset / "snapshots" / "latest").read_text(), "f" * 64)
    shutil.copytree(evaluation, other)
    pd.DataFrame({"image_id": ["00080"]}).to_parquet(other / "predictions.parquet")
    planned = forget(workspace, dataset, ID)
    assert planned.folders == (f"evaluations/{evaluation.name}",)
    assert [path.name for path in (workspace.root / "evaluations").iterdir()] == [other.name]


def test_a_second_one_adds_to_the_tombstones(workspace, dataset):
    forget(workspace, dataset, ID)
    first = forgotten.read_rows(dataset)
    forget(workspace, dataset, "00080")
    both = forgotten.read_rows(dataset)
    assert both.head(len(first)).equals(first)
    assert forgotten.read(dataset).image_ids == {ID, "00080"}


def test_an_id_that_is_not_there_names_those_that_are_like_it_and_changes_nothing(workspace, dataset):
    for typed in ("40", "bin-images/00040.jpg", "00041"):
        with pytest.raises(DatasetError, match=r"is neither in .* did you mean .*00040"):
            forget(workspace, dataset, typed)
    assert not (dataset / forgotten.FILE).exists()


def test_the_command_asks_first_and_takes_no_answer_for_a_no(workspace, dataset, bucket, monkeypatch, capsys):
    words = ["forget", ID, "--source", str(bucket), "--workspace", str(workspace.root)]
    monkeypatch.setattr("sys.argv", ["bincount", *words])
    with pytest.raises(SystemExit):
        main()
    shown = capsys.readouterr()
    assert "give --yes" in shown.err
    assert f"originals/bin-images/{ID}.jpg" in shown.out
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: "")
    app(words, result_action="return_value")
    assert "Nothing was taken away" in capsys.readouterr().out
    assert (dataset / FILES[0]).exists()
    app([*words, "--yes"], result_action="return_value")
    assert "Taken away: 1 bin." in capsys.readouterr().out
    assert not (dataset / FILES[0]).exists()


def test_packs_of_older_decoders_lose_it_too(workspace, dataset):
    shutil.copytree(dataset / "packs" / "32-squash-v2", dataset / "packs" / "32-squash")
    digest = row_of(dataset)["sha256"].encode()
    forget(workspace, dataset, ID)
    assert all(digest not in removal.open_folder(each).digests.to_pylist() for each in removal.pack_folders(dataset))
