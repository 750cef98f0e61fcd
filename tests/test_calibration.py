"""The temperature: fitted on val, kept with the model, and used by every prediction."""

import json

import numpy as np
import pytest
import torch
from synthetic_training import IMAGES, QUICK, dataset

from bincount.evaluation import metrics
from bincount.problem import Classes
from bincount.training import calibration
from bincount.training import model as models
from bincount.training.loop import fit
from bincount.training.model import mean_softmax
from bincount.training.run_folder import Request, Trained
from bincount.training.spec import ModelSpec, read_spec


def overconfident(sharpness: float, num: int = 4000, views: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose labels were drawn from the probabilities of logits that are smaller by the factor sharpness."""
    random = np.random.default_rng(0)
    honest = random.normal(0, 2, (num, 1, 4)).astype(np.float32).repeat(views, axis=1)
    labels = (mean_softmax(honest, 1).cumsum(axis=1) > random.random((num, 1))).argmax(axis=1)
    return honest * sharpness, labels


@pytest.mark.parametrize("sharpness", [0.5, 1, 3])
@pytest.mark.parametrize("views", [1, 2])
def test_the_temperature_corrects_over_and_underconfident_logits(sharpness, views):
    logits, labels = overconfident(sharpness, views=views)

    temperature = calibration.fit_temperature(logits, labels)

    assert temperature == pytest.approx(sharpness, rel=0.06)


def test_calibrated_probabilities_match_the_frequency_of_correct_predictions():
    logits, labels = overconfident(3)

    def error(temperature: float) -> float:
        return metrics.calibration_error(metrics.reliability(labels, mean_softmax(logits, temperature)))

    assert error(1) > 0.1
    assert error(calibration.fit_temperature(logits, labels)) < 0.03


def without_order_of_mistakes(num: int, share_wrong: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits (num, 1, 4) that are about 3.5 higher for one class, and labels of which a share is another class."""
    random = np.random.default_rng(seed)
    predicted = random.integers(0, 4, num)
    logits = random.normal(0, 0.5, (num, 1, 4)) + 3.5 * np.eye(4)[predicted][:, None]
    is_wrong = np.arange(num) < round(share_wrong * num)
    return logits.astype(np.float32), np.where(is_wrong, (predicted + 1) % 4, predicted)


@pytest.mark.parametrize("right", [True, False])
def test_a_few_images_that_are_all_right_or_all_wrong_do_not_run_away(right):
    logits = np.array([[[3.0, 0, 0]]] * 5, np.float32)
    labels = np.zeros(5, int) if right else np.ones(5, int)

    assert 0.2 < calibration.fit_temperature(logits, labels) < 5


def test_a_val_without_mistakes_does_not_make_the_mistakes_of_a_test_certain():
    logits, labels = without_order_of_mistakes(60, share_wrong=0, seed=1)
    temperature = calibration.fit_temperature(logits, labels)
    assert 0.2 < temperature < 0.6
    assert mean_softmax(logits, temperature).max() < 1 - 1e-6

    test_logits, test_labels = without_order_of_mistakes(1000, share_wrong=0.02, seed=2)

    def log_loss(temperature: float) -> float:
        probabilities = mean_softmax(test_logits, temperature)[np.arange(1000), test_labels]
        return -np.log(np.maximum(probabilities, 1e-12)).mean()

    assert log_loss(temperature) < 0.6 * log_loss(0.1)  # where the fit would end without a prior
    assert log_loss(temperature) < 1.5 * log_loss(1)


@pytest.mark.parametrize("sharpness", [0.3, 1, 3])
def test_where_val_has_ordinary_mistakes_the_prior_hardly_matters(sharpness, monkeypatch):
    logits, labels = overconfident(sharpness, num=500)
    temperature = calibration.fit_temperature(logits, labels)
    monkeypatch.setattr(calibration, "PRIOR_SD", 1e6)
    assert temperature == pytest.approx(calibration.fit_temperature(logits, labels), rel=0.01)


def test_a_training_keeps_the_temperature_with_its_model_and_predictions_use_it(tmp_path):
    snapshot, pack = dataset(tmp_path)
    trained = fit(Request(snapshot, pack, IMAGES, QUICK, tmp_path / "run"))

    model, spec = models.load(trained.checkpoint)

    assert spec.temperature != 1
    val = snapshot.labelled().query("split == 'val'")
    rows, labels = pack.locate(val["sha256"]), val["label"].to_numpy(np.int64)
    logits = models.logits(model, spec, pack.images, rows)
    assert calibration.fit_temperature(logits, labels) == pytest.approx(spec.temperature, rel=1e-3)
    predicted = models.probabilities(model, spec, pack.images, rows)
    assert predicted == pytest.approx(mean_softmax(logits, spec.temperature))
    sharper = spec.model_copy(update={"temperature": spec.temperature / 3})
    assert models.probabilities(model, sharper, pack.images, rows).max(axis=1).mean() > predicted.max(axis=1).mean()
    log_loss = -np.log(predicted[np.arange(len(labels)), labels]).mean()
    assert trained.val_log_loss == pytest.approx(log_loss, rel=1e-5)
    assert trained.val_log_loss < trained.val_loss  # before the temperature
    assert Trained.read(trained.folder) == trained


def test_a_model_from_before_temperatures_predicts_as_it_did(tmp_path):
    torch.manual_seed(0)
    spec = ModelSpec.make(IMAGES, QUICK, Classes.parse("0..2"))
    models.save(tmp_path, models.build(spec), spec)
    written = json.loads((tmp_path / "model.json").read_text())
    for name in ("temperature", "weights_sha256", "checksum"):
        del written[name]
    (tmp_path / "model.json").write_text(json.dumps(written))

    assert read_spec(tmp_path).temperature == 1
