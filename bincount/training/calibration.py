"""The temperature that makes a trained network's probabilities mean what they say."""

import logging
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import minimize_scalar

from bincount.data.packs import Pack
from bincount.training.files import write_spec
from bincount.training.model import load, logits, mean_softmax

logger = logging.getLogger(__name__)

LARGEST = 10.0  # and the smallest is its inverse: a few images that are all right, or all wrong, know no bounds


def calibrate(checkpoint: Path, pack: Pack, rows: np.ndarray, labels: np.ndarray, device: torch.device) -> np.ndarray:
    """Fit the temperature of the model in a checkpoint folder on val, and keep it with the model.

    rows (N,) are the images' places in the pack, labels (N,) their classes. Returns the probabilities (N, C) that the
    model gives them then.
    """
    model, spec = load(checkpoint, device)
    answers = logits(model, spec, pack.images, rows)
    temperature = fit_temperature(answers, labels)
    write_spec(checkpoint, spec.model_copy(update={"temperature": temperature}))
    logger.info("temperature %.3f, fitted on %d images of val", temperature, len(labels))
    return mean_softmax(answers, temperature)


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature with the least log loss: logits (N, L, C) of L looks at each picture, labels (N,) in 0..C-1.

    Guo et al., On Calibration of Modern Neural Networks (ICML 2017), with the probabilities that are used in the end:
    the mean over the looks.
    """

    def log_loss(log_temperature: float) -> float:
        answers = mean_softmax(logits, float(np.exp(log_temperature)))
        return -np.log(np.maximum(answers[np.arange(len(labels)), labels], 1e-12)).mean()

    bound = np.log(LARGEST)
    return float(np.exp(minimize_scalar(log_loss, bounds=(-bound, bound), method="bounded").x))
