"""A trained network that predicts as fast as this machine can, with the predictions that it had in its test."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from bincount.settings import Device
from bincount.training import model as models
from bincount.training.device import choose_device
from bincount.training.spec import ModelSpec, model_digest


@dataclass(frozen=True, eq=False)
class Engine:
    """A network in memory, on its device.

    network is the torch module in float32, for what needs gradients; digest identifies its predictions.
    """

    network: nn.Module
    spec: ModelSpec
    digest: str

    @classmethod
    def load(cls, checkpoint: Path, device: Device = "auto") -> "Engine":
        """Read the model in a checkpoint folder.

        Raises ModelNotFound, ModelDamaged, and SettingsError as choose_device does.
        """
        network, spec = models.load(checkpoint, choose_device(device))
        return cls(network, spec, model_digest(checkpoint))

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Return the logits (N, V, O) float32 of images (N, S, S, 3) uint8, for V views and all O outputs of the spec.

        One thread at a time may call this.
        """
        return models.logits(self.network, self.spec, images, with_extra=True)
