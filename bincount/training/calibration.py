"""Temperature scaling, which calibrates the probabilities of a trained network."""

import logging
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import minimize_scalar

from bincount.data.packs import Pack
from bincount.threshold import Threshold
from bincount.training.model import load, logits, mean_softmax
from bincount.training.questions import Questions
from bincount.training.spec import read_spec, write_spec

logger = logging.getLogger(__name__)

MAX_TEMPERATURE = 10.0  # and its inverse the smallest
# Of the prior of log temperature, whose mean is 0: 95 % of it are temperatures of 0.14 to 7. Where val has 500 images
# and ordinary mistakes, the temperature changes by less than 1 %.
PRIOR_SD = 1.0


def calibrate(
    checkpoint: Path, pack: Pack, rows: np.ndarray | Questions, labels: np.ndarray, device: torch.device
) -> np.ndarray:
    """Fit the temperature of the model in a checkpoint folder on val, and write it into its model.json.

    rows (N,) are the images' rows in the pack, or questions about them, labels (N,) their classes. Returns their
    calibrated probabilities (N, C).
    """
    model, spec = load(checkpoint, device)
    val_logits = logits(model, spec, pack.images, rows)
    temperature = fit_temperature(val_logits, labels)
    write_spec(checkpoint, spec.model_copy(update={"temperature": temperature}))
    logger.info("temperature %.3f, fitted on %d images of val", temperature, len(labels))
    return mean_softmax(val_logits, temperature)


def keep_threshold(checkpoint: Path, threshold: Threshold | None) -> None:
    """Write the threshold that was chosen for a model into its model.json; none where there is none."""
    if threshold is None:
        return
    spec = read_spec(checkpoint)
    write_spec(checkpoint, spec.model_copy(update={"threshold": threshold}))
    logger.info("threshold: %s", threshold.describe(spec.classes))


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Find the most probable temperature for logits (N, V, C) of V views and labels (N,) in 0..C-1.

    Guo et al., On Calibration of Modern Neural Networks (ICML 2017), applied to the probabilities that predictions
    use: the mean over the views. The temperature with the least log loss is found, with a weak prior: images that are
    all right have no such temperature, since a smaller one is always better, and then every mistake elsewhere is made
    with certainty. The prior of log temperature is normal about 0, so that the total log loss of the N images grows by
    (log temperature / PRIOR_SD)² / 2; for logistic regression, which has the same trouble with classes that separate,
    see Gelman et al., A weakly informative default prior distribution (Annals of Applied Statistics, 2008).
    """

    def loss(log_temperature: float) -> float:
        probabilities = mean_softmax(logits, float(np.exp(log_temperature)))
        log_loss = -np.log(np.maximum(probabilities[np.arange(len(labels)), labels], 1e-12)).mean()
        return log_loss + (log_temperature / PRIOR_SD) ** 2 / 2 / len(labels)

    bound = np.log(MAX_TEMPERATURE)
    return float(np.exp(minimize_scalar(loss, bounds=(-bound, bound), method="bounded").x))
