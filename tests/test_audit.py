"""The audit: which network scores which bin, and what is left when it is killed anywhere."""

import importlib.util
import json
import sys
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from synthetic_training import IMAGES, QUICK, draw

from bincount import auditing, files
from bincount.data import bins, contradictions, folds, questions, snapshots, tables
from bincount.data.folds import Fold
from bincount.errors import DatasetError, ModelNotFound, SettingsError
from bincount.evaluation import audit as audits
from bincount.evaluation import audit_quality, audit_table, change_evidence, earlier
from bincount.evaluation.audit import MODEL, NOT_ANSWERABLE, SCORED, TRAINED_ON, Scorer
from bincount.evaluation.evaluate import probability_columns
from bincount.problem import Classes
from bincount.settings import AuditConfig, Job
from bincount.tracking.packaging import MODEL_TAG
from bincount.training import model as models
from bincount.training.spec import ModelSpec

CLASSES = Classes.parse("0..2")
NUM_FOLDS = 3
JOB = Job(images=IMAGES, audit=AuditConfig(queue=20, random_share=0.2))


def rank(scores, outputs, errors, min_confidence):
    """By 1 - P(recorded), in place of the posterior."""
    probabilities = scores[probability_columns(outputs)].to_numpy(np.float64)
    labels = scores["recorded"].map({name: label for label, name in enumerate(outputs.names)}).to_numpy()
    p_recorded = probabilities[np.arange(len(scores)), labels]
    counted = np.array(outputs.names, object)[probabilities.argmax(axis=1)]
    return scores.assign(
        p_wrong=1 - p_recorded,
        counted=counted,
        answer=np.where(probabilities.max(axis=1) < min_confidence, "look", counted),
        confidence=probabilities.max(axis=1),
        expected=probabilities @ np.array(outputs.values),
        direction="more",
        p_recorded=p_recorded,
        odds=1.0,
        margin=0.0,
        expected_difference=0.0,
        rank=pd.Series(1 - p_recorded).rank(ascending=False, method="first").astype(int),
    )


NO_VERDICTS = pd.DataFrame(columns=["image_id", "random", "outcome", "class_name"])
STUBS = {
    "bincount.evaluation.ranking": SimpleNamespace(rank=rank),
    "bincount.evaluation.record_errors": SimpleNamespace(
        estimate=lambda rate, reviewed: SimpleNamespace(rate=rate, num_reviewed=len(reviewed))
    ),
    "bincount.evaluation.audit_quality": SimpleNamespace(
        RAREST="rarest record",
        measure=lambda *words: pd.DataFrame(
            {"score": ["p_wrong"], "measure": ["precision at 10"], "value": [0.5], "low": [0.4], "high": [0.6]}
        ),
        promise=lambda *words: SimpleNamespace(describe=lambda: "It promises."),
    ),
    "bincount.data.reviews": SimpleNamespace(
        read=lambda dataset: NO_VERDICTS, resolve=lambda rows, records: rows, random_share=lambda dataset: NO_VERDICTS
    ),
    "bincount.reporting.audit": SimpleNamespace(
        About=SimpleNamespace, Tile=lambda *tile: tile, write=lambda path, *rest: path.write_text("a page")
    ),
}


@pytest.fixture(autouse=True)
def parts(monkeypatch):
    """What an audit is made of and is not there is replaced, and batches are small."""
    for name, stub in STUBS.items():
        if importlib.util.find_spec(name) is None:
            monkeypatch.setitem(sys.modules, name, stub)
    monkeypatch.setattr(audits, "BATCH", 8)


def network(folder, seed=0, extra=()):
    """A network of random weights: who scores what does not depend on what it predicts."""
    torch.manual_seed(seed)
    spec = ModelSpec.make(IMAGES, QUICK, CLASSES, extra)
    models.save(folder, models.build(spec), spec)
    return folder


def frozen(folder, rows: list[tuple[str, str, str, str | None]]) -> snapshots.Snapshot:
    """A snapshot of images, each with its id, its bin, its class and its split, and their records."""
    table = pd.DataFrame(rows, columns=["image_id", "group", "class_name", "split"])
    table["path"] = "images/" + table["image_id"] + ".png"
    for image_id, count, path in zip(table["image_id"], table["class_name"], table["path"], strict=True):
        if not (folder / path).exists():
            draw(folder / path, int(count) % 9, seed=int(image_id))
    contents = [(folder / path).read_bytes() for path in table["path"]]
    table = table.assign(
        quantity=table["class_name"].astype("Int16"),
        label=table["class_name"].where(table["split"].isin(["train", "val", "test"])).astype("Int8"),
        bytes=[len(content) for content in contents],
        sha256=[audits.hashlib.sha256(content).hexdigest() for content in contents],
        width=32,
        height=32,
        status="ok",
        reason="",
    )
    kept = ["image_id", "class_name", "quantity", "path", "bytes", "sha256", "width", "height", "status", "reason"]
    records = table[kept].assign(record_sha256=[f"record of {image_id}" for image_id in table["image_id"]])
    items = [[("ITEM", int(count))] if int(count) else [] for count in table["class_name"]]
    bins.append(folder, [row | {"items": of} for row, of in zip(records.to_dict("records"), items, strict=True)], "all")
    bins.merge(folder)
    return snapshots.freeze(table, CLASSES, "drawn", folder)


def bins_of(split: str | None, numbers: range, *, images: int = 1) -> list[tuple[str, str, str, str | None]]:
    return [
        (f"{number * 10 + image:05}", f"{split}{number}", str(number % 3), split)
        for number in numbers
        for image in range(images)
    ]


FIRST = [
    *bins_of("train", range(18), images=2),
    *bins_of("val", range(100, 106)),
    *bins_of("test", range(200, 206)),
    ("09000", "large", "7", "extra"),
    ("09010", "larger", "7", "extra"),
    ("09020", "largest", "7", "extra"),
    ("09500", "beyond", "17", None),
]


@pytest.fixture
def snapshot(tmp_path):
    return frozen(tmp_path / "data", FIRST)


@pytest.fixture
def scorers(tmp_path, snapshot):
    """A model that was trained on the snapshot, and the networks of its folds."""
    return (
        Scorer(MODEL, network(tmp_path / "model", 9, ("7",)), (snapshot,)),
        *(
            Scorer.of_fold(fold, network(tmp_path / str(fold), fold.number, ("7",)), snapshot)
            for fold in (Fold(number, NUM_FOLDS) for number in range(1, NUM_FOLDS + 1))
        ),
    )


def run(folder, snapshot, scorers, job=JOB, changes=None):
    """A whole audit, as the flow does it."""
    audit = audits.begin(folder, snapshot, scorers, "version 3")
    for scorer in scorers:
        if audits.num_batches(audit, scorer):
            audits.score(audit, scorer, audits.pack_for(audit, scorer), "cpu")
    return audit, auditing.finish(audit, job, changes)


# Who scores what


def test_bins_of_train_are_scored_by_the_network_of_their_fold_and_the_others_by_the_model(snapshot, scorers):
    plan = audits.assign_scorers(snapshot, scorers)
    by_split = plan.groupby(plan["split"].fillna("none"))["scored_by"].unique().map(set)
    assert by_split["val"] == by_split["test"] == {MODEL}
    assert by_split["train"] == {"fold 1 of 3", "fold 2 of 3", "fold 3 of 3"}
    assigned = folds.assign(snapshot, NUM_FOLDS)
    of_folds = plan[plan["split"].isin(["train", "extra"])]
    assert (of_folds["scored_by"] == "fold " + of_folds["image_id"].map(assigned).astype(str) + " of 3").all()


def test_without_folds_the_bins_that_the_model_was_trained_on_are_listed_with_a_reason(snapshot, scorers):
    plan = audits.assign_scorers(snapshot, scorers[:1]).set_index("image_id")
    trained_on = plan[plan["status"] == TRAINED_ON]
    assert set(trained_on["split"]) == {"train", "extra"}
    assert len(trained_on) == 36 + 3
    assert trained_on["reason"].str.contains("--folds").all()
    assert set(plan.loc[plan["status"] == SCORED, "split"]) == {"val", "test"}


def test_a_record_that_no_network_can_answer_is_listed_with_a_reason(snapshot, scorers, tmp_path):
    plan = audits.assign_scorers(snapshot, scorers).set_index("image_id")
    assert plan.loc["09500", "status"] == NOT_ANSWERABLE
    assert plan.loc["09500", "reason"] == "the record is 17, which is no answer that the model has"
    assert plan.loc["09000", "status"] == SCORED  # seven are an extra count
    narrow = Scorer(MODEL, network(tmp_path / "narrow"), ())
    plan = audits.assign_scorers(snapshot, (narrow,)).set_index("image_id")
    assert plan.loc["09000", "status"] == NOT_ANSWERABLE


def test_a_model_of_an_earlier_snapshot_scores_what_came_since_but_no_new_picture_of_a_bin_it_knows(tmp_path, scorers):
    later = [
        *((image_id, "00000" if group == "train0" else group, *rest) for image_id, group, *rest in FIRST),
        ("00002", "00000", "1", "train"),  # another picture of a bin, which has another name since it came
        *bins_of("train", range(30, 33)),
    ]
    grown = frozen(tmp_path / "data", later)
    plan = audits.assign_scorers(grown, scorers[:1]).set_index("image_id")
    assert plan.loc["00002", "status"] == TRAINED_ON
    assert set(plan.loc[["00300", "00310", "00320"], "scored_by"]) == {MODEL}


def test_a_model_that_started_from_another_was_trained_on_the_bins_of_both(tmp_path, snapshot, scorers):
    other = frozen(tmp_path / "data", [*bins_of("train", range(200, 206)), *bins_of("test", range(300, 303))])
    snapshot = frozen(tmp_path / "data", FIRST)
    warm = Scorer(MODEL, scorers[0].checkpoint, (snapshot, other))
    plan = audits.assign_scorers(snapshot, (warm,))
    assert set(plan.loc[plan["split"] == "test", "status"]) == {TRAINED_ON}
    assert set(plan.loc[plan["split"] == "val", "status"]) == {SCORED}


def test_no_bin_is_scored_by_a_network_that_was_trained_on_its_group(snapshot, scorers, tmp_path):
    audit, _ = run(tmp_path / "audits", snapshot, scorers)
    scores, rows = audits.collect(audit), snapshot.read()
    used = rows["split"].isin(["train", "extra"])
    for scorer in scorers:
        seen = rows[used & ~folds.left_out(snapshot, scorer.fold)] if scorer.fold else rows[used]
        mine = scores[scores["scored_by"] == scorer.name]
        assert len(mine)
        assert not set(mine["group"]) & set(seen["group"])
        assert not set(mine["sha256"]) & set(seen["sha256"])
    assert set(scores["image_id"]) == set(rows["image_id"]) - {"09500"}


@pytest.mark.parametrize("scored_by", [MODEL, "fold 2 of 3", "somebody"])
def test_a_score_by_a_network_that_was_trained_on_the_bin_is_an_error(snapshot, scorers, tmp_path, scored_by):
    audit, _ = run(tmp_path / "audits", snapshot, scorers)
    scores = audits.collect(audit)
    audits.require_unseen(scores, snapshot, scorers)
    place = scores.index[scores["scored_by"] == "fold 1 of 3"][0]
    scores.loc[place, "scored_by"] = scored_by
    with pytest.raises(DatasetError, match=f"such as {scores.loc[place, 'image_id']}, were scored by a network"):
        audits.require_unseen(scores, snapshot, scorers)
    tables.write_frame(scores, audit.folder / audits.SCORES)
    with pytest.raises(DatasetError, match="run `bincount audit` again"):
        auditing.finish(audit, JOB.replace(audit=AuditConfig(queue=30)))


def test_networks_of_other_classes_are_an_error_that_names_the_remedy(snapshot, tmp_path):
    folder = tmp_path / "others"
    spec = ModelSpec.make(IMAGES, QUICK, Classes.parse("0..5"))
    models.save(folder, models.build(spec), spec)
    with pytest.raises(SettingsError, match="audit with the same --classes"):
        audits.begin(tmp_path / "audits", snapshot, (Scorer(MODEL, folder, ()),), "version 1")


# Scores


def test_scores_are_what_the_network_predicts_for_the_picture_in_order_of_the_labels(snapshot, scorers, tmp_path):
    audit, _ = run(tmp_path / "audits", snapshot, scorers)
    scores = audits.collect(audit)
    names = probability_columns(audit.outputs)
    assert names == ["p_0", "p_1", "p_2", "p_7"]
    assert scores[names].dtypes.eq(np.float32).all()
    assert np.allclose(scores[names].sum(axis=1), 1, atol=1e-5)
    assert scores["image_id"].is_monotonic_increasing
    for scorer in scorers:
        mine = scores[scores["scored_by"] == scorer.name]
        pack = audits.pack_for(audit, scorer)
        loaded, spec = models.load(scorer.checkpoint)
        expected = models.probabilities(loaded, spec, pack.images, pack.locate(mine["sha256"]), with_extra=True)
        assert np.allclose(mine[names], expected, atol=1e-6)


def test_an_output_that_only_some_networks_have_is_zero_for_the_others(snapshot, scorers, tmp_path):
    narrow = Scorer(MODEL, network(tmp_path / "narrow"), (snapshot,))
    audit, _ = run(tmp_path / "audits", snapshot, (narrow, *scorers[1:]))
    scores = audits.collect(audit)
    assert (scores.loc[scores["scored_by"] == MODEL, "p_7"] == 0).all()
    assert (scores.loc[scores["scored_by"] != MODEL, "p_7"] > 0).all()


@pytest.mark.services
def test_an_audit_that_is_killed_at_any_write_and_run_again_gives_the_same_table(
    snapshot, scorers, tmp_path, monkeypatch
):
    unbroken = run(tmp_path / "unbroken", snapshot, scorers)[1]
    write, calls = files.sync_to_disk, []

    def killed_at(number):
        calls.clear()

        def sync(descriptor):
            calls.append(descriptor)
            if len(calls) == number:
                raise KeyboardInterrupt
            write(descriptor)

        return sync

    number, ended = 0, False
    while not ended:
        number += 1
        folder = tmp_path / f"killed at {number}"
        monkeypatch.setattr(files, "sync_to_disk", killed_at(number))
        try:
            run(folder, snapshot, scorers)
            ended = True
        except KeyboardInterrupt:
            pass
        monkeypatch.setattr(files, "sync_to_disk", write)
        again = run(folder, snapshot, scorers)[1]
        assert again.table.drop(columns="time").equals(unbroken.table.drop(columns="time"))
        assert again.headline == unbroken.headline
        assert not list(again.folder.rglob(".*.new"))
    assert number > 12  # plan, each batch, scores, table, CSV and figures


def test_batches_that_are_there_are_not_scored_again_and_the_time_is_that_of_the_beginning(
    snapshot, scorers, tmp_path, monkeypatch
):
    audit = audits.begin(tmp_path / "audits", snapshot, scorers, "version 3")
    audits.score(audit, scorers[1], audits.pack_for(audit, scorers[1]), "cpu", [0])
    time.sleep(0.01)
    scored, probabilities = [], models.probabilities
    monkeypatch.setattr(
        models,
        "probabilities",
        lambda *words, **options: scored.append(len(words[2])) or probabilities(*words, **options),
    )
    again, audited = run(tmp_path / "audits", snapshot, scorers)
    assert (again.folder, again.time) == (audit.folder, audit.time)
    assert sum(scored) == audited.figures.num_scored - 8
    run(tmp_path / "audits", snapshot, scorers)
    assert sum(scored) == audited.figures.num_scored - 8


def test_a_damaged_batch_is_scored_again(snapshot, scorers, tmp_path):
    audit = audits.begin(tmp_path / "audits", snapshot, scorers, "version 3")
    audits.score(audit, scorers[0], audits.pack_for(audit, scorers[0]), "cpu")
    part = next((audit.folder / audits.PARTS).iterdir())
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    unbroken = run(tmp_path / "unbroken", snapshot, scorers)[1]
    assert run(tmp_path / "audits", snapshot, scorers)[1].table["p_wrong"].equals(unbroken.table["p_wrong"])


# The result


def test_the_table_has_every_bin_the_first_to_check_first_and_says_by_whom_and_when(snapshot, scorers, tmp_path):
    audit, audited = run(tmp_path / "audits", snapshot, scorers)
    table = audited.table
    assert len(table) == len(FIRST)
    scored = table[table["status"] == SCORED]
    assert scored["rank"].tolist() == list(range(1, len(scored) + 1))
    assert scored["p_wrong"].is_monotonic_decreasing
    assert table["rank"].isna().sum() == 1
    assert table.iloc[-1]["image_id"] == "09500"
    assert set(table["model"]) == {"version 3"}
    assert set(table["snapshot"]) == {snapshot.digest}
    assert set(table["time"]) == {audit.time}
    assert table.set_index("image_id").loc["00000", "record"] == "record of 00000"
    figures = audited.figures
    assert (figures.num_bins, figures.num_scored, figures.num_not_answerable) == (len(FIRST), len(scored), 1)
    assert figures.num_scored_by_folds == 36 + 3


def test_the_table_has_the_picture_and_the_record_before_of_each_bin_that_has_one(snapshot, scorers, tmp_path):
    _, audited = run(tmp_path / "audits", snapshot, scorers)
    table = audited.table.set_index("image_id")
    assert table.loc["00011", ["before", "recorded_before"]].tolist() == ["00010", "1"]
    assert table.loc[["00010", "01000", "09500"], ["before", "recorded_before"]].isna().all(axis=None)
    assert "00011" in table.index[table["before"].notna()]
    first = audit_table.first_bins(audited.table, 50).set_index("bin")
    assert first.loc["00011", "before"] == "1"
    assert first.loc["00010", "before"] == ""


@pytest.mark.parametrize("found_with", [0.3, 0.1])
def test_bins_are_ranked_by_their_earlier_pictures_where_these_find_more(
    snapshot, scorers, tmp_path, monkeypatch, found_with
):
    def measured(*_, earlier):
        return pd.DataFrame(
            {"score": ["p_wrong", "picture alone"], "measure": "recall at 5 %", "value": [found_with, 0.2]}
        ).assign(low=0.0, high=1.0, lift=2.0)

    _, alone = run(tmp_path / "alone", snapshot, scorers)
    monkeypatch.setattr(earlier, "FEWEST_PAIRS", 3)
    monkeypatch.setattr(audit_quality, "measure", measured)
    _, audited = run(tmp_path / "with", snapshot, scorers)

    assert alone.figures.num_with_earlier == 0
    assert alone.figures.recall_at_5_percent_alone is None
    assert audited.figures.recall_at_5_percent == max(found_with, 0.2)
    tables_of = [each.table.set_index("image_id")["p_wrong"] for each in (alone, audited)]
    differs = ~np.isclose(*(table.reindex(tables_of[0].index) for table in tables_of), equal_nan=True)
    if found_with > 0.2:
        assert audited.figures.num_with_earlier == audited.table["before"].notna().sum() > 0
        assert audited.figures.recall_at_5_percent_alone == 0.2
        assert set(tables_of[0].index[differs]) <= set(audited.table.dropna(subset="before")["image_id"])
        assert differs.any()
    else:
        assert audited.figures.num_with_earlier == 0
        assert not differs.any()


def test_the_result_of_a_release_that_knew_no_earlier_pictures_is_made_anew(snapshot, scorers, tmp_path):
    audit, audited = run(tmp_path / "audits", snapshot, scorers)
    path = audited.folder / audit_table.FIGURES
    content = audit_table.read_result(audited.folder)
    del content["inputs"]["earlier_pictures"]
    figures = ("num_with_earlier", "recall_at_5_percent_alone")
    content["figures"] = {name: value for name, value in content["figures"].items() if name not in figures}
    audit_table.Figures.model_validate(content["figures"])
    files.write_sealed(path, {name: value for name, value in content.items() if name != "checksum"})
    assert auditing.finish(audit, JOB) == audited
    assert audit_table.read_result(audited.folder)["inputs"]["earlier_pictures"]


def test_cells_that_a_spreadsheet_would_run_are_made_harmless_and_numbers_stay_numbers(tmp_path):
    table = pd.DataFrame(
        {
            "rank": pd.array([1, None], "Int64"),
            "image_id": ["=cmd|'/c calc'!A0", "@SUM(1)"],
            "recorded": ["+1+1", "-x"],
            "p_wrong": np.array([0.123456789, np.nan], np.float32),
            "margin": [-0.5, 0.25],
        }
    )
    audit_table.write_csv(table, tmp_path / "audit.csv")
    text = (tmp_path / "audit.csv").read_text()
    read = pd.read_csv(tmp_path / "audit.csv", dtype={"image_id": str})
    assert read["image_id"].tolist() == ["'=cmd|'/c calc'!A0", "'@SUM(1)"]
    assert read["recorded"].tolist() == ["'+1+1", "'-x"]
    assert read["margin"].tolist() == [-0.5, 0.25]
    assert read["p_wrong"].iloc[0] == 0.123457
    assert "nan" not in text


def test_records_whose_items_do_not_add_up_are_listed_apart(tmp_path):
    rows = [
        {"image_id": "00001", "quantity": 3, "items": [("A", 1), ("B", 2)], "status": "ok", "reason": ""},
        {"image_id": "00002", "quantity": 3, "items": [("A", 1), ("B", 1)], "status": "ok", "reason": ""},
        {"image_id": "00003", "quantity": 3, "items": [], "status": "ok", "reason": ""},  # nothing is listed
        {"image_id": "00004", "quantity": 0, "items": [("A", 1)], "status": "ok", "reason": ""},
        {"image_id": "00005", "status": "ok", "reason": ""},  # a class that is no count
        {"image_id": "00006", "quantity": 1, "items": [("A", 2)], "status": "quarantined", "reason": "broken"},
    ]
    bins.append(tmp_path, rows, "first")
    assert contradictions.find(tmp_path).tolist() == ["00002", "00004"]
    bins.merge(tmp_path)
    bins.append(tmp_path, [rows[1] | {"quantity": 2}], "second")  # somebody has corrected it
    assert contradictions.find(tmp_path).tolist() == ["00004"]
    assert contradictions.find(tmp_path / "nothing").tolist() == []


def made_up(number: int) -> pd.DataFrame:
    ids = [f"{each:06}" for each in range(number)]
    return pd.DataFrame({"image_id": ids, "rank": np.arange(1, number + 1), "status": SCORED})


def test_the_queue_has_the_likeliest_errors_and_a_random_share_of_all_bins():
    table, config = made_up(1000), AuditConfig(queue=100, random_share=0.3)
    queue = audit_table.choose_queue(table, config, pd.Series([], dtype="str"), "seed")
    assert (len(queue), queue["random"].sum()) == (100, 30)
    assert queue["image_id"].is_unique
    suspects = queue[~queue["random"]]
    assert suspects["rank"].is_monotonic_increasing
    assert suspects["rank"].max() <= 100
    assert queue.loc[queue["random"], "rank"].mean() > 200
    assert queue["random"].head(50).any()
    assert queue["random"].tail(50).any()


def test_the_same_bins_are_drawn_again_when_their_ranks_have_changed():
    table, config = made_up(1000), AuditConfig(queue=100)
    turned = table.assign(rank=table["rank"].to_numpy()[::-1])
    nobody = pd.Series([], dtype="str")
    queues = [audit_table.choose_queue(each, config, nobody, "seed") for each in (table, turned)]
    drawn = [set(queue.loc[queue["random"], "image_id"]) for queue in queues]
    assert drawn[0] == drawn[1]
    other = audit_table.choose_queue(table, config, nobody, "another")
    assert drawn[0] != set(other.loc[other["random"], "image_id"])


def test_bins_that_were_reviewed_are_asked_about_again_only_where_they_are_drawn():
    table, config = made_up(200), AuditConfig(queue=100)
    reviewed = table["image_id"].head(50)
    queue = audit_table.choose_queue(table, config, reviewed, "seed")
    assert not set(queue.loc[~queue["random"], "image_id"]) & set(reviewed)
    assert len(queue) == 100


def test_a_new_review_is_ranked_anew_without_scoring_and_under_another_name(snapshot, scorers, tmp_path, monkeypatch):
    audit, first = run(tmp_path / "audits", snapshot, scorers)
    assert auditing.finish(audit, JOB) == first
    monkeypatch.setattr(audits, "score", None)
    again = auditing.finish(audit, JOB.replace(audit=AuditConfig(queue=20, random_share=0.2, min_confidence=1)))
    assert again.folder == first.folder
    assert again.name != first.name
    assert again.figures.num_to_look == again.figures.num_scored
    content = json.loads((again.folder / audit_table.FIGURES).read_text())
    assert content["inputs"]["settings"]["min_confidence"] == 1


def test_a_version_has_seen_the_bins_of_all_models_that_its_members_started_from():
    digests = {number: f"{number}" * 64 for number in range(1, 5)}
    starts = {
        1: {"weights": "imagenet", "members": "1"},
        2: {"weights": f"/gone/{digests[1][:16]}.safetensors"},
        3: {"weights": "none"},
        4: {
            "weights": "imagenet",
            "members": str([*({"weights": f"/gone/{digests[each][:16]}.safetensors"} for each in (2, 3)), {}]),
        },
    }
    every = [
        SimpleNamespace(name="bincount", version=number, run_id=number, tags={MODEL_TAG: digest})
        for number, digest in digests.items()
    ]
    registry = SimpleNamespace(runs=SimpleNamespace(read_params=starts.get), versions=lambda: every)

    assert [each.version for each in auditing.find_ancestors(registry, every[3])] == [4, 2, 3, 1]
    assert [each.version for each in auditing.find_ancestors(registry, every[0])] == [1]


def test_a_model_of_changes_has_seen_the_bins_of_the_counting_model_that_it_started_from():
    """Both are version 1, each under its own name."""
    start = SimpleNamespace(name="bincount", version=1, run_id="counting", tags={MODEL_TAG: "1" * 64})
    champion = SimpleNamespace(name="bincount-change", version=1, run_id="change", tags={MODEL_TAG: "2" * 64})
    params = {"counting": {"weights": "imagenet"}, "change": {"weights": f"/gone/{'1' * 16}.safetensors"}}
    runs = SimpleNamespace(read_params=params.get)
    counting, changes = (SimpleNamespace(runs=runs, versions=lambda each=each: [each]) for each in (start, champion))

    assert auditing.find_ancestors(changes, champion, (counting,)) == [champion, start]
    with pytest.raises(ModelNotFound, match="no registered version says"):
        auditing.find_ancestors(changes, champion)


@pytest.mark.parametrize("task", ["no champion", "unknown weights"])
def test_an_audit_does_without_a_model_of_changes_of_which_nobody_knows_what_it_was_trained_on(task, tmp_path, caplog):
    def find(reference):
        if task == "no champion":
            raise ModelNotFound("no version of bincount-change is champion")
        return SimpleNamespace(name="bincount-change", version=1, run_id="change", tags={})

    params = {"change": {"weights": f"/gone/{'1' * 16}.safetensors"}}
    changes = SimpleNamespace(find=find, runs=SimpleNamespace(read_params=params.get), versions=list)
    with caplog.at_level("INFO"):
        assert auditing.fetch_change_scorer(changes, SimpleNamespace(versions=list), JOB, tmp_path) is None
    assert "no model of changes is asked: " in caplog.text


@pytest.mark.parametrize("task", ["counting", "change"])
def test_an_audit_does_without_a_model_that_counts_under_a_name_of_models_of_changes(
    task, tmp_path, caplog, monkeypatch
):
    """As a release may have registered it that knew no questions."""
    found = SimpleNamespace(spec=SimpleNamespace(task=task))
    monkeypatch.setattr(auditing, "fetch_scorer", lambda *_: found)
    version = SimpleNamespace(name="bin-change", version=4)
    with caplog.at_level("INFO"):
        fetched = auditing.fetch_change_scorer(SimpleNamespace(find=lambda _: version), None, JOB, tmp_path)
    assert fetched is (found if task == "change" else None)
    assert ("bin-change version 4 counts" in caplog.text) == (task == "counting")


# With a model of changes


@pytest.fixture
def changes(tmp_path, snapshot):
    """A model of changes that was trained on the questions about the first six bins of train."""
    spec = ModelSpec.make(IMAGES, QUICK.model_copy(update={"task": "change"}), questions.CHANGES)
    models.save(tmp_path / "changes", models.build(spec), spec)
    some = questions.ask_changes(snapshot)
    some = some[some["group"].isin([f"train{number}" for number in range(6)])]
    trained_on = snapshots.freeze(some, questions.CHANGES, "drawn", snapshot.dataset, as_latest=False)
    return Scorer(MODEL, tmp_path / "changes", (trained_on,))


def finds(monkeypatch, without: float, with_changes: float) -> None:
    """Have the ranking find so many of the wrong records with earlier pictures, and 0.2 by the picture alone."""

    def measured(*_, earlier):
        found = without if earlier.change_ratios is None else with_changes
        return pd.DataFrame(
            {"score": ["p_wrong", "picture alone"], "measure": "recall at 5 %", "value": [found, 0.2]}
        ).assign(low=0.0, high=1.0, lift=2.0)

    monkeypatch.setattr(earlier, "FEWEST_PAIRS", 3)
    monkeypatch.setattr(change_evidence, "FEWEST_PAIRS", 3)
    monkeypatch.setattr(change_evidence, "POWERS", (0.0, 1.0))
    monkeypatch.setattr(change_evidence, "_log_likelihoods", lambda earlier, *_: np.tile([0.0, 1.0], (len(earlier), 1)))
    monkeypatch.setattr(audit_quality, "measure", measured)


def test_a_model_of_changes_is_asked_about_the_bins_alone_that_it_was_not_trained_on(
    snapshot, scorers, changes, tmp_path, monkeypatch
):
    finds(monkeypatch, 0.3, 0.4)
    _, without = run(tmp_path / "without", snapshot, scorers)
    audit, audited = run(tmp_path / "with", snapshot, scorers, changes=changes)

    answers = change_evidence.ask_in_audit(audit, changes)
    groups = snapshot.read().set_index("image_id")["group"]
    of_items = {f"train{number}" for number in range(6, 18) if number % 3}  # those of none share none
    assert set(groups[answers.index]) == of_items
    assert audited.figures.recall_at_5_percent == 0.4
    of_each = [each.table.set_index("image_id")["p_wrong"] for each in (without, audited)]
    differs = ~np.isclose(*(table.reindex(of_each[0].index) for table in of_each), equal_nan=True)
    assert differs.any()
    assert set(of_each[0].index[differs]) <= set(answers.index)
    monkeypatch.setattr(change_evidence, "ask_unseen", None)  # nothing is asked twice
    assert auditing.finish(audit, JOB, changes) == audited
    assert audited.name != without.name


@pytest.mark.parametrize(
    ("without", "with_changes", "kept", "said"),
    [
        (0.3, 0.25, "earlier", ["earlier pictures and the model of changes was tried and is not used: "]),
        (0.1, 0.3, "changes", []),
        (0.1, 0.15, "alone", ["earlier pictures was tried", "earlier pictures and the model of changes was tried"]),
    ],
)
def test_the_page_says_in_a_sentence_what_was_tried_and_is_not_used(
    snapshot, scorers, changes, tmp_path, monkeypatch, without, with_changes, kept, said
):
    finds(monkeypatch, without, with_changes)
    _, audited = run(tmp_path / "audits", snapshot, scorers, changes=changes)
    sentences = audit_table.read_result(audited.folder)["not_used"]
    page = (audited.folder / audit_table.PAGE).read_text()
    assert sentences.count("is not used") == len(said)
    for text in said:
        assert text in sentences
    assert sentences in page
    assert audited.figures.recall_at_5_percent == max(0.2, without, with_changes)
    assert (audited.figures.num_with_earlier == 0) == (kept == "alone")


def test_the_page_of_an_audit_without_earlier_pictures_says_nothing_of_them(snapshot, scorers, tmp_path):
    _, audited = run(tmp_path / "audits", snapshot, scorers)
    assert audit_table.read_result(audited.folder)["not_used"] == ""
    assert "With a history" not in (audited.folder / audit_table.PAGE).read_text()
