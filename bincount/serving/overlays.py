"""Pictures of where a model looked, to lie over a photo."""

import io

import numpy as np
from PIL import Image

from bincount.data import pictures
from bincount.evaluation.attention import grad_cam
from bincount.serving import decoding
from bincount.serving.served import ServedModel
from bincount.serving.turns import Turns
from bincount.settings import MAX_PIXELS

MOST_AT_ONCE = 4  # that are made or wait: an overlay takes as long as a prediction, and is not batched
LONGEST_SIDE = 512  # pixels; a feature map has far fewer places than that

# Colours by how much a place speaks for the class: what says little is dark, so that it hardly tints the photo.
SHARES = (0.0, 0.35, 0.65, 0.85, 1.0)
COLOURS = ((60, 10, 140), (150, 20, 160), (235, 40, 100), (255, 120, 40), (255, 225, 70))
CLEAR = 0.35  # heat up to which the photo stays as it is, so that items are seen
STEEPNESS = 1.4  # of opacity over the heat above that


class Overlays:
    """Makes overlays, one at a time and apart from predictions."""

    def __init__(self) -> None:
        self._turns = Turns("overlay", MOST_AT_ONCE)

    async def make(self, model: ServedModel, content: bytes, label: int | None, timeout: float) -> bytes:
        """Return a PNG for a picture file, as draw does. Raises BadPicture, QueueFull and TimeoutError."""
        return await self._turns.take(timeout, draw, model, content, label)


def draw(model: ServedModel, content: bytes, label: int | None = None) -> bytes:
    """Draw where a model sees what speaks for a class, by default the predicted one; return a PNG.

    It has the aspect of the upright photo and is transparent where nothing speaks for the class or the model does not
    see the photo. Raises BadPicture.
    """
    spec = model.engine.spec
    with decoding.room.taken(pictures.num_pixels(content)):
        pixels = pictures.decode(content, spec.images)
        photo = pictures.inspect(content, MAX_PIXELS, with_hash=False)
    (heat,) = grad_cam(model.engine.network, spec, pixels[None], None if label is None else np.array([label]))
    scale = min(1.0, LONGEST_SIDE / max(photo.width, photo.height))
    size = max(1, round(photo.width * scale)), max(1, round(photo.height * scale))
    seen = size if spec.resize == "squash" else (min(size), min(size))
    colours = Image.fromarray(colour(np.asarray(Image.fromarray(heat).resize(seen, Image.Resampling.BILINEAR))))
    overlay = Image.new("RGBA", size)
    overlay.paste(colours, ((size[0] - seen[0]) // 2, (size[1] - seen[1]) // 2))
    file = io.BytesIO()
    overlay.save(file, "PNG")
    return file.getvalue()


def colour(heat: np.ndarray) -> np.ndarray:
    """Return heat (H, W) in 0..1 as colours (H, W, 4) uint8, transparent where it is at most CLEAR."""
    channels = [np.interp(heat, SHARES, values) for values in zip(*COLOURS, strict=True)]
    opacity = 255 * np.clip((heat - CLEAR) / (1 - CLEAR), 0, 1) ** STEEPNESS
    return np.stack([*channels, opacity], axis=2).round().astype(np.uint8)
