"""Several figures as one picture, for pages that show pictures one below the other and at their own size."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from PIL import Image

from bincount.reporting.figures import as_image

WIDTH = 1100  # pixels, as MLflow's page of a version has room for on a laptop
DOTS_PER_INCH = 100
SQUEEZE = 0.75  # to which share of its width a figure may be drawn without its text getting smaller


def montage(rows: Sequence[Sequence[Figure]], heights: Sequence[int], width: int = WIDTH) -> Image.Image:
    """Draw rows of figures one below the other, those of a row equally wide; heights has that of each row, in pixels.

    The figures keep their size.
    """
    canvas = Image.new("RGB", (width, sum(heights)), "white")
    top = 0
    for row, height in zip(rows, heights, strict=True):
        cell = width // len(row)
        for column, figure in enumerate(row):
            canvas.paste(_draw(figure, cell, height), (column * cell, top))
        top += height
    return canvas


def _draw(figure: Figure, width: int, height: int) -> Image.Image:
    size = figure.get_size_inches()
    inches = max(width / DOTS_PER_INCH, SQUEEZE * size[0])
    figure.set_size_inches(inches, inches * height / width)
    try:
        return as_image(figure, width / inches)
    finally:
        figure.set_size_inches(size)
