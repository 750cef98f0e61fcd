"""The scores beside those of models that answer questions, and where such models are registered."""

from types import SimpleNamespace

import numpy as np
import pytest
from recurring_items import build, runs

from bincount import preflight, provenance
from bincount.data import item_changes, questions, synthetic
from bincount.data.questions import LARGEST_CHANGE
from bincount.errors import DatasetError, SettingsError
from bincount.evaluation import asked, holdout
from bincount.reporting import rules
from bincount.settings import AuditConfig, DataConfig, EvaluationConfig, Job, RegistryConfig, TrainConfig
from bincount.threshold import choose_limit
from bincount.tracking import names
from bincount.workspace import Workspace


@pytest.fixture(scope="module")
def bins(tmp_path_factory):
    return build(tmp_path_factory.mktemp("dataset"), runs(400))


def knowing(rows):
    """The probabilities of somebody who is sure of every change."""
    return np.eye(2 * LARGEST_CHANGE + 1)[rows["label"].to_numpy(int)]


def knowing_nothing(rows):
    return np.full((len(rows), 2 * LARGEST_CHANGE + 1), 1 / (2 * LARGEST_CHANGE + 1))


@pytest.mark.parametrize("task", ["object", "quantity"])
def test_rules_are_scored_on_the_questions_of_the_test(bins, task):
    frozen = questions.freeze(bins, task)
    scores = asked.measure(frozen, bins, task)

    test = frozen.labelled().query("split == 'test'")
    assert (scores.num_questions, scores.num_bins) == (len(test), test["group"].nunique())
    by_name = {rule.name: rule.accuracy for rule in scores.rules}
    assert by_name["the commonest answer"] == by_name["an id at most 2 away holds the item"] == 0.5
    assert scores.verified is None
    assert scores.scalars()["rule_the_commonest_answer_accuracy"] == 0.5
    assert "rule_the_item_number_of_pictures_accuracy" in scores.scalars()
    assert all(name.startswith("test/rule_") for name in names.of_test(scores.scalars()))


def test_changes_are_verified_by_the_distribution_of_the_change(bins):
    frozen = questions.freeze(bins, "change")
    sure, unsure = (
        asked.measure(frozen, bins, "change", asked.verify_changes(frozen, bins, predict))
        for predict in (knowing, knowing_nothing)
    )

    assert sure.verified.model.accuracy == 1
    assert 0 < sure.verified.min_probability <= 1
    assert unsure.verified.model.accuracy == 0.5  # each change is asked as often where it is right as where it is wrong
    wrong = [rule for rule in sure.verified.rules if rule.accuracy != pytest.approx(0.5, abs=0.2)]
    assert not wrong
    assert sure.verified.num_questions == len(questions.verify_changes(bins).query("split == 'test'"))
    assert sure.scalars()["verified_accuracy"] == 1
    assert sure.best.accuracy == max(rule.accuracy for rule in sure.rules) < 1


def test_changes_are_verified_by_the_limit_of_the_model_where_it_has_one(bins):
    frozen = questions.freeze(bins, "change")
    never = asked.verify_changes(frozen, bins, knowing_nothing, limit=0.5)
    assert never.min_probability == 0.5
    assert never.model.accuracy == 0.5


def test_changes_of_items_are_verified_by_how_many_are_on_both_pictures(bins):
    every = item_changes.find(bins)

    def know(rows):
        return np.eye(2 * LARGEST_CHANGE + 1)[rows["change"] + LARGEST_CHANGE]

    found = asked.verify_item_changes(bins, every, know)
    assert found.of_item
    assert found.model.accuracy == 1
    assert found.num_questions == len(item_changes.verify(every.query("split == 'test'")))
    assert all(rule.accuracy == 0.5 for rule in found.rules if "count before" in rule.name)
    assert "of the item" in found.describe()
    assert asked.verify_item_changes(bins, every.query("split != 'val'"), know) is None
    assert asked.verify_item_changes(bins, every.head(0), know) is None


def test_the_probability_from_which_on_the_answer_is_yes_is_right_most_often():
    assert choose_limit(np.array([0.1, 0.2, 0.3, 0.9]), np.array([0, 1, 0, 1])) == 0.9
    assert choose_limit(np.array([0.1, 0.2, 0.3, 0.9]), np.array([0, 1, 1, 1])) == 0.2
    assert choose_limit(np.array([0.4, 0.4]), np.array([0, 1])) == 0.4


def test_models_of_each_task_have_a_name_of_their_own(tmp_path):
    config = RegistryConfig(model_name="shelves")
    assert config.of_task("counting") is config
    assert config.of_task("object").model_name == "shelves-object"
    assert config.of_task("object").of_task("object").model_name == "shelves-object"
    assert config.of_task("change").answers == "change"
    assert config.answers is None
    job = Job(training=TrainConfig(task="quantity")).registered_by_task()
    assert job.registry.model_name == "bincount-quantity"
    places = Workspace(root=tmp_path)
    assert places.report_of(RegistryConfig()) == places.report
    assert places.report_of(job.registry).name == "report-bincount-quantity.html"


@pytest.mark.parametrize("check", [preflight.check_run, preflight.check_tune])
def test_a_model_that_counts_gets_no_name_of_models_that_answer_questions(check, tmp_path):
    """Else versions of both stood under one name, and one could become champion of the other."""
    (tmp_path / "bin-images").mkdir()
    (tmp_path / "metadata").mkdir()
    job = Job(
        data=DataConfig(source=str(tmp_path)),
        registry=RegistryConfig(model_name="dented-object"),
        workspace=tmp_path / "workspace",
    )
    with pytest.raises(SettingsError, match="ends in -object; give a model that counts another name") as raised:
        check(job)
    assert str(raised.value).endswith("renamed on MLflow's page, and keeps its versions), or --task object beside it")
    preflight.check_run(job.replace(training=TrainConfig(task="object")))


def test_class_folders_have_no_questions_which_shows_before_anything_is_fetched(tmp_path):
    synthetic.generate_boxes(tmp_path / "boxes", 30, size=(32, 32), broken=False)
    job = Job(data=DataConfig(source=str(tmp_path / "boxes")), training=TrainConfig(task="object"), workspace=tmp_path)
    with pytest.raises(SettingsError, match="leave out --task"):
        preflight.check_run(job)


@pytest.mark.parametrize(
    "check",
    [
        lambda job: preflight.check_cross_fit(job.replace(evaluation=EvaluationConfig(cross_fit=5))),
        lambda job: preflight.check_audit(job.replace(audit=AuditConfig(folds=4)), "folds"),
        preflight.check_tune,
    ],
)
def test_what_is_for_counting_alone_says_so(check):
    with pytest.raises(SettingsError, match="models that count, and not for --task change"):
        check(Job(training=TrainConfig(task="change")))


def test_questions_are_asked_once(bins):
    frozen = questions.freeze(bins, "object")
    assert questions.ask(frozen, "object") == frozen
    assert questions.ask(bins, "counting") == bins
    with pytest.raises(DatasetError, match="holds questions already"):
        questions.require_records(frozen)


def test_the_bins_of_test_questions_are_new_to_a_model_of_train_and_val(bins):
    frozen = questions.freeze(bins, "object")
    rows = frozen.labelled()
    used = set(holdout.bins_trained_on(bins, [frozen]))
    assert holdout.find_unseen(frozen, [frozen]).all()
    assert used >= set(rows.query("split != 'test'")["group"])
    assert not used & set(rows.query("split == 'test'")["group"])
    shown = rows.explode("references").merge(bins.read(), left_on="references", right_on="sha256")
    assert used >= set(shown["group_y"])


@pytest.mark.parametrize("task", ["object", "change"])
def test_a_bin_is_found_in_questions_that_show_it(bins, task, tmp_path):
    frozen = questions.freeze(bins, task)
    question = frozen.labelled().query("split == 'train'").iloc[-1]
    shown = bins.read().set_index("sha256").loc[[question["sha256"], *question["references"]], "image_id"]

    traced = provenance.trace(Workspace(root=tmp_path), bins.dataset, shown.tolist())

    for image_id, found in zip(shown, traced.bins, strict=True):
        uses = [use for use in found.uses if use.snapshot == frozen.digest]
        assert {(use.bin_id, use.label) for use in uses} == {(image_id, "questions")}
        assert "train" in {use.split for use in uses}
        assert not found.copies


def test_a_bin_is_found_in_questions_that_show_a_picture_that_it_had_before(tmp_path):
    bins = build(tmp_path / "dataset", runs(100))
    frozen = questions.freeze(bins, "object")
    [sha256, *_] = frozen.labelled().query("split == 'val'")["references"].iloc[0]
    before = bins.read().set_index("sha256").loc[sha256]
    [now] = [each for each in runs(100) if each["image_id"] == before["image_id"]]
    build(bins.dataset, [now | {"sha256": "f" * 64}])

    [found] = provenance.trace(Workspace(root=tmp_path), bins.dataset, [before["image_id"]]).bins

    assert {"f" * 64, sha256} <= set(found.digests)
    assert "val" in {use.split for use in found.uses if use.snapshot == frozen.digest}
    assert not found.copies


def test_the_scores_of_rules_stand_below_those_of_the_model(bins):
    frozen = questions.freeze(bins, "change")
    scores = asked.measure(frozen, bins, "change", asked.verify_changes(frozen, bins, knowing))
    made = SimpleNamespace(
        asked=scores, metrics=SimpleNamespace(accuracy=0.9), intervals={"accuracy": scores.verified.model}
    )

    table = rules.scores(made)
    assert table[""].tolist()[:2] == ["this model", "the commonest answer"]
    text = rules.markdown(made)
    assert rules.VERIFIED in text
    assert "was chosen on val" in text
    assert "<table" in rules.section(made)
