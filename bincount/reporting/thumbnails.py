"""Pictures of a page: which images have one, and how large they are, so that the page stays small."""

import io
import logging
from collections.abc import Sequence
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
    form = choose_form([pack.images[int(row)] for row in sample(rows)], len(rows), BUDGET)
    encoded, left = [], BUDGET
    for row in rows:
        picture = encode_as(form, pack.images[int(row)])
        left -= len(picture)
        if left < 0:
            break
        encoded.append(picture)
    logger.debug("%d pictures of %d pixels on the page", len(encoded), min(form.side, pack.image_size))
    return encoded


def sample(rows: Sequence[int], num: int = NUM_SAMPLED) -> Sequence[int]:
    """Return at most num rows that are spread over all, for choose_form."""
    return rows[:: max(1, -(-len(rows) // num))]


def choose_form(images: Sequence[np.ndarray], num: int, budget: float) -> Form:
    """Return the largest form in which num pictures like these few fit a budget of bytes, or the smallest of all."""
    for form in FORMS:
        bytes_of_one = np.mean([len(encode_as(form, image)) for image in images]) if len(images) else 0
        if bytes_of_one * num <= 0.95 * budget:
            return form
    return FORMS[-1]


def encode_as(form: Form, pixels: np.ndarray) -> bytes:
    """Encode a picture, (S, S, 3) uint8, as WebP. Several threads may do so at a time."""
    image = Image.fromarray(pixels)
    if image.width > form.side:
        image = image.resize((form.side, form.side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, FORMAT, quality=form.quality, method=2)  # at 4 it takes twice the time for 5 % less
    return file.getvalue()


def _take(images: np.ndarray, is_changed: np.ndarray, num: int) -> list[int]:
    """Take the first num images, of which the changed ones have precedence for half of the places."""
    if len(images) > num:
        ahead = images[is_changed[images]][: num // 2]
        images = np.concatenate([ahead, images[~np.isin(images, ahead)]])[:num]
    return images.tolist()


def _spread(images: np.ndarray) -> np.ndarray:
    """Shuffle, the same way every time, so that the first ones are a sample of all."""
    return np.random.default_rng(0).permutation(images)
