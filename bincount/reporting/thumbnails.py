"""Pictures of a page: which images have one, and how large they are, so that the page stays small."""

import io
import logging
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from bincount.data.packs import Pack

logger = logging.getLogger(__name__)

MOST_PICTURES = 1000
FEWEST_RIGHT = 200  # of them, where so many predictions are right
BUDGET = 3_300_000  # bytes of all pictures together, which base64 makes 4.4 MB
NUM_SAMPLED = 24  # pictures from which the size of all is estimated
FORMAT = "webp"


class Form(NamedTuple):
    """The longest side of a picture in pixels, and the quality of its encoding."""

    side: int
    quality: int


# The first that fits the budget is taken. 600 real bins fit at 224 pixels; pure noise only at the last one.
FORMS = tuple(Form(*form) for form in [(320, 80), (224, 80), (224, 60), (160, 75), (128, 70), (96, 60), (96, 30)])


def choose(is_right: np.ndarray, p_recorded: np.ndarray, is_changed: np.ndarray, num: int = MOST_PICTURES) -> list[int]:
    """Choose the images that get a picture, the most telling first: all where there are no more than num.

    The arrays are (N,): whether the prediction is the record, the probability of the record, and whether another model
    is right where this one is wrong, or the other way round. Mistakes come first, by the lowest probability of the
    record; of the right ones a sample is taken that is spread over all. Changed ones get up to half of either's places.
    """
    worst_first = np.argsort(p_recorded, kind="stable")
    mistakes, right = worst_first[~is_right[worst_first]], worst_first[is_right[worst_first]]
    num_right = min(len(right), max(num - len(mistakes), min(FEWEST_RIGHT, num // 5)))
    chosen = _take(mistakes, is_changed, num - num_right)
    return [*chosen, *_take(_spread(right), is_changed, num_right)]


def encode(pack: Pack, rows: Sequence[int]) -> list[bytes]:
    """Encode the pictures of a pack at these rows as WebP, as large as the budget allows; the first ones if not all."""
    form = next((form for form in FORMS if _estimate(pack, rows, form) <= 0.95 * BUDGET), FORMS[-1])
    encoded, left = [], BUDGET
    for picture in _encode(pack, rows, form):
        left -= len(picture)
        if left < 0:
            break
        encoded.append(picture)
    logger.debug("%d pictures of %d pixels on the page", len(encoded), min(form.side, pack.image_size))
    return encoded


def _estimate(pack: Pack, rows: Sequence[int], form: Form) -> float:
    """Return the bytes that all pictures would have, by some of them."""
    sample = list(rows[:: max(1, len(rows) // NUM_SAMPLED)])
    return sum(map(len, _encode(pack, sample, form))) / max(len(sample), 1) * len(rows)


def _encode(pack: Pack, rows: Sequence[int], form: Form) -> Iterator[bytes]:
    for row in rows:
        image = Image.fromarray(pack.images[int(row)])
        if image.width > form.side:
            image = image.resize((form.side, form.side), Image.Resampling.LANCZOS)
        file = io.BytesIO()
        image.save(file, FORMAT, quality=form.quality, method=2)  # at 4 it takes twice the time for 5 % less
        yield file.getvalue()


def _take(images: np.ndarray, is_changed: np.ndarray, num: int) -> list[int]:
    """Take the first num images, of which the changed ones have precedence for half of the places."""
    if len(images) > num:
        ahead = images[is_changed[images]][: num // 2]
        images = np.concatenate([ahead, images[~np.isin(images, ahead)]])[:num]
    return images.tolist()


def _spread(images: np.ndarray) -> np.ndarray:
    """Shuffle, the same way every time, so that the first ones are a sample of all."""
    return np.random.default_rng(0).permutation(images)
