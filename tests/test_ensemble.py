"""Several networks as one model."""

import numpy as np
import pytest
from synthetic_training import IMAGES, QUICK, dataset

from bincount.training import ensemble
from bincount.training import model as models
from bincount.training.calibration import fit_temperature
from bincount.training.loop import fit
from bincount.training.run_folder import Request, read_history
from bincount.training.validation import measure

THREE = QUICK.model_copy(update={"members": 3, "epochs": 2})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Three trainings, the model made of them, and their data."""
    folder = tmp_path_factory.mktemp("ensemble")
    snapshot, pack = dataset(folder, train=48)
    members = [
        fit(Request(snapshot, pack, IMAGES, member, folder / str(member.seed))) for member in THREE.each_member()
    ]
    return snapshot, pack, members, ensemble.combine(members, snapshot, pack, folder / "mean", "cpu")


def val(snapshot, pack):
    rows = snapshot.labelled().query("split == 'val'")
    return pack.locate(rows["sha256"]), rows["label"].to_numpy(np.int64)


def test_members_are_trainings_of_their_own_with_the_seeds_that_follow():
    assert [member.seed for member in THREE.model_copy(update={"seed": 7}).each_member()] == [7, 8, 9]
    assert {member.members for member in THREE.each_member()} == {1}
    assert QUICK.each_member() == [QUICK]  # what was trained alone can be a member later


def test_the_model_predicts_the_mean_of_its_members_probabilities(trained):
    snapshot, pack, members, mean = trained
    network, spec = models.load(mean.checkpoint)
    rows, _ = val(snapshot, pack)

    predicted = models.probabilities(network, spec, pack.images, rows)

    alone = []
    for member in members:
        its_network, its_spec = models.load(member.checkpoint)
        same_temperature = its_spec.model_copy(update={"temperature": spec.temperature})
        alone.append(models.probabilities(its_network, same_temperature, pack.images, rows))
    assert not np.allclose(alone[0], alone[1], atol=1e-3)
    np.testing.assert_allclose(predicted, np.mean(alone, axis=0), atol=1e-6)


def test_the_temperature_is_that_of_the_mean(trained):
    snapshot, pack, _, mean = trained
    network, spec = models.load(mean.checkpoint)
    rows, labels = val(snapshot, pack)
    assert spec.temperature == pytest.approx(fit_temperature(models.logits(network, spec, pack.images, rows), labels))
    predicted = models.probabilities(network, spec, pack.images, rows)
    log_loss = -np.log(predicted[np.arange(len(labels)), labels]).mean()
    assert mean.val_log_loss == pytest.approx(log_loss, rel=1e-5)


def test_the_result_has_the_scores_of_the_mean_and_of_each_member(trained):
    snapshot, pack, members, mean = trained
    network, spec = models.load(mean.checkpoint)
    rows, labels = val(snapshot, pack)
    scores = measure(models.probabilities(network, spec, pack.images, rows), labels, snapshot.classes)
    assert (mean.val_accuracy, mean.val_loss) == (scores["val_accuracy"], pytest.approx(scores["val_loss"]))
    assert mean.members == tuple(member.val_accuracy for member in members)
    assert mean.seconds == pytest.approx(sum(member.seconds for member in members))
    first = [read_history(member.folder)[0]["train_loss"] for member in members]
    history = read_history(mean.folder)
    assert [record["epoch"] for record in history] == [1, 2]
    assert history[0]["train_loss"] == pytest.approx(np.mean(first))


def test_a_finished_model_is_not_made_again(trained):
    snapshot, pack, members, mean = trained
    weights = mean.checkpoint / "model.safetensors"
    before = weights.stat().st_mtime_ns
    assert ensemble.combine(members, snapshot, pack, mean.folder, "cpu") == mean
    assert weights.stat().st_mtime_ns == before
