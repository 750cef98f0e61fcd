"""Presets: a backbone with the size of images, the epochs and the batch that suit it, for who does not want to choose.

A preset lies below everything that is set: a flag, the environment and the file of --config come before it. What it
sets is kept as plain settings, so that no model depends on what a preset means in another release.
"""

from typing import Literal

from bincount.settings import ImageConfig, Job, TrainConfig

PresetName = Literal["laptop", "gpu", "best"]

PRESETS: dict[PresetName, Job] = {
    # Measured on bins (experiments.md): minutes for thousands of images on two cores.
    "laptop": Job(
        images=ImageConfig(image_size=128), training=TrainConfig(model="mobilenet_v2", epochs=12, batch_size=64)
    ),
    # Neither of the others has been measured on bins.
    "gpu": Job(images=ImageConfig(image_size=224), training=TrainConfig(model="resnet50", epochs=20, batch_size=256)),
    # ConvNeXt is fine-tuned at smaller learning rates than networks with batch normalisation.
    "best": Job(
        images=ImageConfig(image_size=288),
        training=TrainConfig(model="convnext_small", epochs=30, batch_size=128, learning_rate=5e-4, members=3),
    ),
}
