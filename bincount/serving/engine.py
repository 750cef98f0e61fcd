"""A trained network that predicts as fast as this machine can, with the predictions that it had in its test.

On a CPU each batch normalisation is folded into the convolution before it, whose weights are packed, and a batch goes
through the network in parts whose activations stay below 32 MB each: the C library takes larger ones from the kernel
anew for every layer, which costs a third of the time and more. docs/pages/experiments.md has what was measured, also of
what is not used: bfloat16, which moves probabilities by up to 0.05, OpenVINO and ONNX Runtime. On a GPU the network
runs as it is.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bincount.serving.folding import fold, largest_part, part_sizes
from bincount.settings import Device
from bincount.training import model as models
from bincount.training.device import choose_device
from bincount.training.spec import ModelSpec, model_digest
from bincount.training.views import prepare

logger = logging.getLogger(__name__)

TOLERANCE = 0.002  # of a probability


@dataclass(frozen=True, eq=False)
class Engine:
    """A network in memory, on its device.

    network is the torch module in float32, for what needs gradients and for questions; digest identifies its
    predictions. folded is a faster form of it for a CPU; without one the network itself predicts. What answers
    questions takes more than pictures, so that it has no folded form and no logits of its own here.
    """

    network: nn.Module
    spec: ModelSpec
    digest: str
    folded: nn.ModuleList | None = None

    @classmethod
    def load(cls, checkpoint: Path, device: Device = "auto") -> "Engine":
        """Read the model in a checkpoint folder.

        Raises ModelNotFound, ModelDamaged, and SettingsError as choose_device does.
        """
        network, spec = models.load(checkpoint, choose_device(device))
        plain = cls(network, spec, model_digest(checkpoint))
        # A GPU needs no folding, and the layers of timm and of questions are not all traceable.
        if next(network.parameters()).is_cuda or spec.has_timm or spec.task != "counting":
            return plain
        faster = cls(network, spec, plain.digest, fold(network, spec))
        deviation = largest_deviation(plain, faster)
        if deviation <= TOLERANCE:
            return faster
        logger.warning(
            "with batch normalisation folded into packed convolutions, probabilities deviate by %.4f, more than %g; "
            "the network predicts as it was trained, more slowly",
            *(deviation, TOLERANCE),
        )
        return plain

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Return the logits (N, V, O) float32 of images (N, S, S, 3) uint8, for V views and all O outputs of the spec.

        One thread at a time may call this.
        """
        if self.folded is None or not len(images):
            return models.logits(self.network, self.spec, images, with_extra=True)
        with torch.inference_mode():
            parts = torch.from_numpy(images).split(part_sizes(len(images), self.spec))
            return torch.cat([self._folded_logits(part) for part in parts]).numpy()

    def _folded_logits(self, images: Tensor) -> Tensor:
        """Return (N, V, O), in the order of the views of models.logits: by member, each with its mirror image."""
        pixels = {of: torch.cat(views) for of, views in prepare(images, self.spec).items()}
        members = zip(self.folded, self.spec.each_network(), strict=True)
        views = [view for member, network in members for view in member(pixels[network.input]).split(len(images))]
        return torch.stack(views, dim=1)


def largest_deviation(plain: Engine, faster: Engine) -> float:
    """Return the largest difference of the probabilities of two engines for the same model, on drawn pictures.

    There are so many that parts of each size occur: what the first of a size takes longer, no request waits for.
    """
    side, num_pictures = plain.spec.image_size, 2 * largest_part(plain.spec) - 1
    coarse = np.random.default_rng(0).integers(0, 256, (num_pictures, 8, 8, 3), dtype=np.uint8)
    images = coarse.repeat(side // 8, axis=1).repeat(side // 8, axis=2)
    plain_, faster_ = (models.mean_softmax(engine.logits(images), plain.spec.temperature) for engine in (plain, faster))
    return float(np.abs(plain_ - faster_).max())
