"""Several figures as one picture, for pages that show pictures one below the other and at their own size."""

import io
from collections.abc import Sequence

from matplotlib.figure import Figure
from PIL import Image

WIDTH = 1100  # pixels, as MLflow's page of a version has room for on a laptop


def montage(rows: Sequence[Sequence[Figure]], width: int = WIDTH) -> Image.Image:
    """Draw rows of figures one below the other, each row as wide as the picture and its figures equally high."""
    strips = []
    for row in rows:
        height = width / sum(figure.get_figwidth() / figure.get_figheight() for figure in row)
        strips.append([_draw(figure, height / figure.get_figheight()) for figure in row])
    canvas = Image.new("RGB", (width, sum(_height(strip) for strip in strips)), "white")
    top = 0
    for strip in strips:
        left = 0
        for picture in strip:
            canvas.paste(picture, (left, top))
            left += picture.width
        top += _height(strip)
    return canvas


def _draw(figure: Figure, dots_per_inch: float) -> Image.Image:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dots_per_inch)
    return Image.open(file).convert("RGB")


def _height(strip: Sequence[Image.Image]) -> int:
    return max(picture.height for picture in strip)
