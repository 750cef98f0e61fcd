"""The pictures that a run keeps: they are written, legible in size, and say the numbers they were given."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from bincount.evaluation import metrics, plots
from bincount.settings import Classes

BALANCE = pd.DataFrame({"class": ["0", "1"], "train": [80, 1600], "val": [10, 200], "test": [10, 200]})
LONG_NAMES = "intact box,box with a torn lid or without any lid at all,crushed corner"


def history(num_epochs: int) -> list[dict]:
    return [
        {"epoch": epoch, "train_loss": 2 / epoch, "val_loss": 3 / epoch, "train_accuracy": 0.6, "val_accuracy": 0.4}
        for epoch in range(1, num_epochs + 1)
    ]


def scored(classes: Classes) -> metrics.Metrics:
    labels = np.arange(len(classes)).repeat(3)
    return metrics.score(labels, np.eye(len(classes))[labels // 2], classes)


def texts(figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_the_balance_says_the_images_and_the_share_of_each_class():
    figure = plots.class_balance(BALANCE)

    assert texts(figure) == ["100  (5%)", "2,000  (95%)"]


@pytest.mark.parametrize("num_epochs", [1, 20])
def test_the_curves_mark_the_best_epoch(num_epochs):
    loss, accuracy = plots.training_curves(history(num_epochs), best_epoch=1).axes

    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["train", "val", "best, epoch 1: 3.000"]
    assert [text.get_text() for text in accuracy.get_legend().get_texts()][-1] == "best, epoch 1: 40.0%"


def test_the_confusion_matrix_says_images_and_shares_of_the_recorded_class():
    labels = np.array([0, 0, 0, 1])
    probabilities = np.array([[1, 0], [1, 0], [0, 1], [0, 1]])

    figure = plots.confusion(metrics.score(labels, probabilities, Classes.parse("0..1")))

    assert texts(figure) == ["2\n67%", "1\n33%", "1\n100%"]


@pytest.mark.parametrize("classes", ["0..1", "0..5", "0..11", LONG_NAMES])
def test_pictures_are_written_and_grow_with_the_number_of_classes(tmp_path, classes):
    classes = Classes.parse(classes)
    path = tmp_path / "new" / "confusion.png"

    plots.save(plots.confusion(scored(classes)), path)

    with Image.open(path) as image:
        assert image.format == "PNG"
        assert min(image.size) > 150 * 0.7 * len(classes)
        assert len(set(image.convert("RGB").resize((64, 64)).get_flattened_data())) > 10


def test_drawing_leaves_matplotlib_as_it_was():
    import matplotlib

    before = dict(matplotlib.rcParams)
    plots.class_balance(BALANCE)

    assert dict(matplotlib.rcParams) == before
