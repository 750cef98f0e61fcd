"""Tests of promotions, of what the registry says of them, and of when a nightly run trains; without Prefect."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from servers import with_database
from synthetic_training import IMAGES, QUICK, dataset

from bincount import champion_drift, lifecycle
from bincount.data import packs, snapshots
from bincount.errors import ModelNotFound
from bincount.evaluation import promotion
from bincount.evaluation.decision import Decision
from bincount.evaluation.evaluate import evaluate
from bincount.settings import DriftConfig, Job, Member, PromotionConfig, RegistryConfig, RetrainConfig, TrainConfig
from bincount.text import sentence_markdown
from bincount.tracking import connection
from bincount.tracking.facts import DECISION_TAG
from bincount.training.loop import fit
from bincount.training.run_folder import Request
from bincount.training.spec import licence_of
from bincount.workspace import Workspace

ANY_NUMBER = RetrainConfig(min_new_images=10)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A workspace with a dataset and a training, which each test copies."""
    root = with_database(tmp_path_factory.mktemp("workspace"))
    snapshot, pack = dataset(root / "datasets" / "drawn", train=96, val=24, test=90)
    (root / "datasets" / "drawn" / "snapshots" / "latest").write_text(snapshot.digest)
    good = fit(Request(snapshot, pack, IMAGES, QUICK.model_copy(update={"epochs": 8}), root / "runs" / "good"))
    untrained = QUICK.model_copy(update={"epochs": 1, "learning_rate": 1e-9})
    bad = fit(Request(snapshot, pack, IMAGES, untrained, root / "runs" / "bad"))
    return root, snapshot, {"good": good.checkpoint, "bad": bad.checkpoint}


class Kept:
    """The registry of a workspace, and what the tasks make of its versions."""

    def __init__(self, root, snapshot, checkpoints, name: str):
        self.workspace, self.snapshot, self.checkpoints = Workspace(root=root), snapshot, checkpoints
        self.config = RegistryConfig(model_name=name)
        self.opened = connection.open_registry(
            self.workspace.tracking_uri(self.config), self.workspace.artifacts, self.config
        )

    def register(self, which: str, name: str = "", snapshot=None, training=QUICK, **tags):
        snapshot = snapshot or self.snapshot
        known = {"snapshot": snapshot.digest, "source": snapshot.source, "classes": "0,1,2"}
        known |= {"num_images": str(snapshot.num_images)}
        params = {**IMAGES.model_dump(), **training.params()}
        run = self.opened.runs.start(f"{self.config.model_name}-{which}{name}", params, {})
        return self.opened.register(run, self.checkpoints[which], "# Card\n\n## Data\n", {**known, **tags}, example())

    def job(self, **sections) -> Job:
        return Job(images=IMAGES, training=QUICK, registry=self.config, workspace=self.workspace.root).replace(
            **sections
        )

    def promote(self, version, **promotion):
        job = self.job(promotion=PromotionConfig(**promotion))
        promoted = lifecycle.promote(self.opened, version, self.snapshot, job, by="test", device="cpu")
        return promoted.version, promoted.decision

    def description(self, version):
        return self.opened.client.get_model_version(version.name, str(version.version)).description

    def look(self, snapshot=None, training=QUICK, rules=ANY_NUMBER):
        job = self.job(training=training, retraining=rules)
        return lifecycle.find_new_data(self.opened, snapshot or self.snapshot, job)


def example() -> bytes:
    from bins import jpeg

    return jpeg()


@pytest.fixture
def kept(folders, request) -> Kept:
    return Kept(*folders, name=request.node.name[:90].replace("[", "-").replace("]", ""))


def test_a_first_version_that_beats_the_majority_class_becomes_champion(kept):
    version, decision = kept.promote(kept.register("good"))

    assert decision.promote
    assert version.alias == "champion"
    assert kept.description(version).startswith(
        "## Against the majority class\n\n**Promote: there was no champion, and accuracy is significantly better"
    )


def test_a_first_version_that_does_not_stays_challenger_and_its_card_says_why_and_what_to_do(kept):
    version, decision = kept.promote(kept.register("bad"))

    assert not decision.promote
    assert version.alias == "challenger"
    assert kept.opened.find_champion() is None
    why = "No champion yet: accuracy is not significantly better than always predicting 0 (at 95 % confidence); "
    why += "`bincount promote 1 --force` makes it champion all the same"
    assert f"## Against the majority class\n\n**{sentence_markdown(why)}.**" in kept.description(version)
    assert version.tags[DECISION_TAG].startswith(why)
    with pytest.raises(
        ModelNotFound, match="is champion; there are: 1 challenger; name one of them, or make it champion"
    ):
        kept.opened.find("champion")


def test_the_page_of_a_test_shows_the_champion_and_the_decision(kept, tmp_path):
    kept.promote(kept.register("bad"), force=True)
    version, pack = kept.register("good"), packs.open_pack(kept.snapshot.dataset, IMAGES)
    evaluation = evaluate(kept.snapshot, pack, kept.checkpoints["good"], tmp_path / "evaluation", "cpu")
    job = kept.job(promotion=PromotionConfig(max_class_loss=100))

    lifecycle.promote(kept.opened, version, kept.snapshot, job, by="test", device="cpu", evaluation=evaluation)

    page = (evaluation.folder / "test.html").read_text(encoding="utf-8")
    assert "Promote: accuracy is significantly better" in page
    champion = json.loads(page.partition('id="data">')[2].partition("</script>")[0])["champion"]
    assert champion["name"] == "version 1"
    assert len(champion["predicted"]) == 90
    kept_page = kept.opened.client.download_artifacts(version.run_id, "test.html", tmp_path)
    assert Path(kept_page).read_text(encoding="utf-8") == page


def test_without_a_champion_the_page_shows_the_decision_alone(kept, tmp_path):
    version, pack = kept.register("good"), packs.open_pack(kept.snapshot.dataset, IMAGES)
    evaluation = evaluate(kept.snapshot, pack, kept.checkpoints["good"], tmp_path / "evaluation", "cpu")

    lifecycle.promote(kept.opened, version, kept.snapshot, kept.job(), by="test", device="cpu", evaluation=evaluation)

    page = (evaluation.folder / "test.html").read_text(encoding="utf-8")
    assert "Promote: there was no champion" in page
    assert '"champion":null' in page


def test_a_page_that_cannot_be_written_takes_nothing_from_the_promotion(kept, tmp_path, monkeypatch, caplog):
    def fail(*_, **__):
        raise OSError("no room for it")

    monkeypatch.setattr(lifecycle, "show_champion", fail)
    version, pack = kept.register("good"), packs.open_pack(kept.snapshot.dataset, IMAGES)
    evaluation = evaluate(kept.snapshot, pack, kept.checkpoints["good"], tmp_path / "evaluation", "cpu")

    promoted = lifecycle.promote(
        kept.opened, version, kept.snapshot, kept.job(), by="test", device="cpu", evaluation=evaluation
    )

    assert promoted.version.alias == "champion"
    assert "the page of the test was not written again with the decision: no room for it" in caplog.text


def test_force_makes_any_first_version_champion(kept):
    version, decision = kept.promote(kept.register("bad"), force=True)

    assert version.alias == "champion"
    assert decision.reason.startswith("forced, though accuracy is not significantly better than always predicting 0")


def test_too_few_test_bins_make_no_champion(kept, monkeypatch):
    monkeypatch.setattr(promotion, "FEWEST_BINS", 91)
    version, decision = kept.promote(kept.register("good"))

    assert version.alias == "challenger"
    assert decision.reason.startswith("90 bins that it was not trained on are too few to compare on, 91 are needed; `b")


def test_the_card_keeps_the_last_comparison_alone(kept):
    kept.promote(kept.register("bad"))
    kept.promote(kept.register("good"))
    again, _ = kept.promote(kept.opened.find("1"))

    card = kept.description(again)
    assert "## Against the majority class" not in card
    assert card.count("## Against the champion") == 1


def test_a_class_that_was_trained_on_and_has_no_test_image_keeps_a_first_version_from_it(kept):
    rows = kept.snapshot.read()
    fewer = rows[(rows["label"] != 2) | (rows["split"] != "test")]
    kept.snapshot = snapshots.freeze(fewer, kept.snapshot.classes, "drawn", kept.snapshot.dataset)
    version, decision = kept.promote(kept.register("good"))

    assert version.alias == "challenger"
    assert decision.reason.startswith("no image of class 2 is among those compared on")


# --- nights without a champion --------------------------------------------------------------------------------------


def grown(kept, num: int):
    """A snapshot of so many images more."""
    rows = kept.snapshot.read()
    more = rows.head(num).assign(
        image_id=[f"9{number:04}" for number in range(num)],
        group=[f"new{number}" for number in range(num)],
        sha256=[f"{number:064}" for number in range(num)],
    )
    both = pd.concat([rows, more], ignore_index=True)
    return snapshots.freeze(both, kept.snapshot.classes, kept.snapshot.source, kept.snapshot.dataset)


def test_before_the_first_version_everything_is_new(kept):
    news = kept.look()
    assert (news.champion, news.since, news.num_new, news.skip_reason) == (None, None, 210, "")


def test_without_a_champion_what_is_new_counts_from_the_last_version(kept):
    kept.promote(kept.register("bad"))

    nothing = kept.look()
    little, enough = kept.look(grown(kept, 7)), kept.look(grown(kept, 12))

    assert (nothing.champion, nothing.num_new) == (None, 0)
    assert nothing.skip_reason == (
        "Nothing was trained: 0 images are new since version 1, the last, as none is champion, "
        "and a training needs 10 (min_new_images)"
    )
    assert (little.num_new, "7 images are new since version 1" in little.skip_reason) == (7, True)
    assert (enough.num_new, enough.skip_reason) == (12, "")


def test_a_version_of_another_source_or_of_other_classes_is_not_counted_from(kept):
    kept.promote(kept.register("bad", "elsewhere", source="another"))
    kept.promote(kept.register("good", "other", classes="0,1"), force=False)
    kept.opened.client.delete_registered_model_alias(kept.config.model_name, "champion")
    assert kept.look().since is None


@pytest.mark.parametrize("decided", ["not yet", "now", "by an earlier release"])
def test_a_version_whose_decision_was_not_carried_out_is_taken_up_though_nothing_is_new(kept, decided):
    version = kept.register("good")
    if decided == "now":
        kept.opened.record_decision(version, Decision(promote=True, reason="there was no champion"))
    elif decided == "by an earlier release":
        text = "Promote: there was no champion"
        kept.opened.client.set_model_version_tag(version.name, str(version.version), DECISION_TAG, text)
    news = kept.look()
    assert (news.num_new, news.skip_reason) == (0, "")


def test_other_settings_or_none_new_the_same_images_are_not_trained_on_twice(kept):
    kept.promote(kept.register("bad"))
    any_number = ANY_NUMBER.model_copy(update={"min_new_images": 0})

    assert "version 1 was trained on these images already. No champion yet" in kept.look(rules=any_number).skip_reason
    other = QUICK.model_copy(update={"epochs": 9})
    assert kept.look(training=other, rules=any_number).skip_reason == ""
    elsewhere = QUICK.model_copy(update={"device": "cuda"})  # what auto stands for is the machine's
    assert kept.look(training=elsewhere, rules=any_number).skip_reason != ""
    asked = QUICK.model_copy(update={"precision": "bfloat16"})
    assert kept.look(training=asked, rules=any_number).skip_reason == ""


def test_a_setting_that_an_older_release_did_not_know_was_as_by_default_then(kept, monkeypatch):
    version, _ = kept.promote(kept.register("bad"))
    params = kept.opened.runs.read_params(version.run_id)
    older = {name: value for name, value in params.items() if name != "freeze_backbone"}
    monkeypatch.setattr(type(kept.opened.runs), "read_params", lambda runs, run_id: older)
    any_number = ANY_NUMBER.model_copy(update={"min_new_images": 0})

    assert "trained on these images already" in kept.look(rules=any_number).skip_reason
    head_alone = QUICK.model_copy(update={"freeze_backbone": True})
    assert kept.look(training=head_alone, rules=any_number).skip_reason == ""


def test_the_majority_class_is_that_of_train(kept):
    rows = kept.snapshot.read()
    rows = rows[~((rows["split"] == "train") & (rows["label"] == 0) & (np.arange(len(rows)) % 2 == 0))]
    kept.snapshot = snapshots.freeze(rows, kept.snapshot.classes, "drawn", kept.snapshot.dataset)
    _, decision = kept.promote(kept.register("good"))
    assert decision.majority == "1"


def test_a_drift_is_announced_until_it_was_kept(kept):
    version, _ = kept.promote(kept.register("good"))
    job = kept.job(drift=DriftConfig(min_images=30))
    new_data = lifecycle.NewData(champion=version, num_new=0, since=version)

    drift, file = champion_drift.measure(kept.opened, new_data, kept.snapshot, None, job)
    assert file is not None
    assert champion_drift.measure(kept.opened, new_data, kept.snapshot, None, job)[1] == file

    champion_drift.keep(drift, file)
    assert champion_drift.measure(kept.opened, new_data, kept.snapshot, None, job) == (drift, None)


def test_a_warm_start_brings_the_licence_of_the_weights_that_the_champion_started_from(kept):
    version, _ = kept.promote(kept.register("good"))
    training = lifecycle.start_from_champion(kept.opened, version, kept.job())
    assert Path(training.weights).is_file()
    assert licence_of(training) == "none needed: random weights"
    assert TrainConfig.model_validate_json(training.model_dump_json()) == training


@pytest.mark.parametrize("starts_from_champion", [True, False], ids=["as warm start", "of another kind"])
def test_a_warm_started_model_of_members_is_not_trained_twice_on_the_same_images(kept, starts_from_champion):
    training = QUICK.model_copy(update={"members": (Member(weights="none"), Member(weights="imagenet"))})
    asked = training.start_all_from("/kept.safetensors") if starts_from_champion else training
    kept.promote(kept.register("bad", training=asked))
    rules = ANY_NUMBER.model_copy(update={"min_new_images": 0, "warm_start": True})
    assert "trained on these images already" in kept.look(training=training, rules=rules).skip_reason
    other = training.model_copy(update={"members": (Member(weights="none"), Member(head="mlp"))})
    assert kept.look(training=other, rules=rules).skip_reason == ""
