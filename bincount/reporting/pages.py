"""The page of a model's test: one HTML file that opens in a browser without internet.

It shows the test images and what was predicted for them, to be filtered, sorted and enlarged, and all scores. Its parts
are test_page.html, test_page.css and test_page.js beside this module, and common.css and common.js, which the page of
an audit has too; the images are one block of JSON in it.
"""

import base64
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template

import numpy as np
import pandas as pd

from bincount.data.packs import Pack
from bincount.data.snapshots import Snapshot
from bincount.evaluation import intervals
from bincount.evaluation.decision import Decision
from bincount.evaluation.evaluate import (
    PREDICTED,
    Evaluation,
    labelled_images,
    predicted_labels,
    probability_columns,
    score_predictions,
)
from bincount.evaluation.metrics import reliability
from bincount.files import atomic_write
from bincount.problem import Classes, Problem
from bincount.reporting import binary, offline, record_before, rules, sections, thumbnails
from bincount.reporting.sections import SideBySide
from bincount.text import escape_html, sentence_html

logger = logging.getLogger(__name__)

NAME = "test.html"


@dataclass(frozen=True)
class Champion:
    """Another model to show beside the tested one.

    predictions are as Evaluation has them, of those images of the test that neither model was trained on.
    """

    name: str
    predictions: pd.DataFrame


def write(
    evaluation: Evaluation,
    snapshot: Snapshot,
    pack: Pack,
    *,
    name: str = "",
    champion: Champion | None = None,
    decision: Decision | None = None,
) -> Path:
    """Write the page of a model's test to the evaluation's folder; return its path.

    pack holds the test images. name is the model's; decision is about it against the champion. Raises DiskFull.
    """
    predictions, classes = evaluation.predictions, snapshot.classes
    probabilities = predictions[probability_columns(classes)].to_numpy()
    labels = predictions["label"].to_numpy(np.int64)
    is_right = predicted_labels(predictions, classes) == labels
    chosen = thumbnails.choose(
        is_right,
        probabilities[np.arange(len(labels)), labels],
        _is_changed(predictions, is_right, champion, classes),
    )
    digests = snapshot.labelled().set_index("image_id")["sha256"]
    encoded = thumbnails.encode(pack, pack.locate(digests[predictions["image_id"].iloc[chosen]]))
    page = evaluation_page(
        evaluation,
        classes,
        name=name,
        about=f"{snapshot.source}, snapshot {snapshot.digest[:12]}",
        pictures=dict(zip(chosen, encoded, strict=False)),  # there are fewer where the budget is spent
        champion=champion,
        decision=decision,
    )
    path = evaluation.folder / NAME
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace")
    if decision is None:  # else it was written before, and said
        logger.info("page of the test: %s", path)
    return path


def evaluation_page(
    evaluation: Evaluation,
    classes: Classes,
    *,
    name: str = "",
    about: str = "",
    pictures: Mapping[int, bytes] = {},
    champion: Champion | None = None,
    decision: Decision | None = None,
) -> str:
    """Write a test as HTML. pictures are WebP files by the position of their image in evaluation.predictions."""
    metrics, predictions = evaluation.metrics, evaluation.predictions
    image_slices, by_slice = evaluation.image_slices, evaluation.slices
    probabilities = predictions[probability_columns(classes)].to_numpy()
    confidence = reliability(predictions["label"].to_numpy(), probabilities, predicted_labels(predictions, classes))
    beside = (
        _side_by_side(evaluation, predictions, champion, classes) if champion and len(champion.predictions) else None
    )
    nouns, examples = evaluation.problem.group_nouns, evaluation.problem.examples
    tested_on = Problem.count(metrics.num_images, examples, predictions["group"].nunique(), nouns)
    of_images = _data(predictions, image_slices, classes, pictures, champion if beside else None)
    of_images |= {"noun": evaluation.problem.noun, "unit": evaluation.problem.unit}
    script = offline.read("common.js") + offline.read("test_page.js")
    return Template(offline.read("test_page.html")).substitute(
        title=escape_html(f"{name}: test" if name else "Test"),
        heading=escape_html(name or "Test"),
        summary=f"Tested on {escape_html(tested_on)}",
        nouns=escape_html(nouns),
        about=escape_html(about),
        decision=_decision(decision),
        cards=sections.cards(evaluation, beside),
        confusion=sections.confusion(metrics),
        class_scores=sections.class_scores(evaluation, beside),
        calibration_error=sections.percent(metrics.calibration_error),
        reliability_plot=sections.reliability_plot(confidence, metrics.calibration_error, examples),
        reliability=sections.reliability(confidence, examples),
        coverage=sections.coverage(evaluation.coverage, examples, is_filter=metrics.threshold is None)
        if evaluation.coverage
        else "",
        coverage_hidden="" if evaluation.coverage else "hidden",
        slices=sections.slices(by_slice, image_slices, evaluation.problem.unit, examples) if len(by_slice) else "",
        curves=binary.section(evaluation, classes),
        rules=rules.section(evaluation) if evaluation.asked else "",
        history=record_before.section(evaluation.history, evaluation.problem.unit) if evaluation.history else "",
        slices_hidden="" if len(by_slice) else "hidden",
        compared_on=_compared_on(beside),
        scores=sections.scores(evaluation, beside),
        style=offline.read("common.css") + offline.read("test_page.css"),
        script=script,
        script_digest=offline.script_digest(script),
        data=offline.as_script_data(of_images),
    )


def _side_by_side(
    evaluation: Evaluation, predictions: pd.DataFrame, champion: Champion, classes: Classes
) -> SideBySide:
    columns = probability_columns(classes)
    compared = predictions[predictions["image_id"].isin(champion.predictions["image_id"])]
    rows = champion.predictions.set_index("image_id").loc[compared["image_id"]]
    of_champion, of_version = rows[columns].to_numpy(), compared[columns].to_numpy()
    champion_labels = predicted_labels(rows, classes)
    images, _ = labelled_images(compared, classes, evaluation.problem)
    of_two = {"positive": images.positive, "miss_cost": evaluation.metrics.miss_cost}  # the cost is one for both
    of_scores, of_changes = intervals.estimate_changes(
        images, of_champion, of_version, predicted=(champion_labels, predicted_labels(compared, classes))
    )
    return SideBySide(
        name=champion.name,
        num_images=len(images),
        is_whole=len(images) == len(predictions),
        version=score_predictions(compared, classes, **of_two),
        champion=score_predictions(
            compared.assign(**{PREDICTED: champion_labels, **dict(zip(columns, of_champion.T, strict=True))}),
            classes,
            **of_two,
        ),
        intervals=of_scores,
        changes=of_changes,
    )


def _data(
    predictions: pd.DataFrame,
    image_slices: pd.DataFrame,
    classes: Classes,
    pictures: Mapping[int, bytes],
    champion: Champion | None,
) -> dict:
    """Return what the page's script reads: columns of all images, their probabilities in thousandths, and pictures."""
    columns = probability_columns(classes)
    probabilities, predicted = predictions[columns].to_numpy(), predicted_labels(predictions, classes)
    data = {
        "classes": classes.names,
        "values": classes.values if classes.ordered else None,
        "ids": predictions["image_id"].tolist(),
        "recorded": predictions["label"].tolist(),
        "predicted": predicted.tolist(),
        "confidence": np.rint(100_000 * probabilities[np.arange(len(predicted)), predicted]).astype(int).tolist(),
        "probabilities": _thousandths(probabilities),
        "slices": [
            {"kind": kind, "values": values.cat.categories.tolist(), "codes": values.cat.codes.tolist()}
            for kind, values in image_slices.drop(columns="image_id").items()
        ],
        "pictures": {str(place): base64.b64encode(picture).decode() for place, picture in pictures.items()},
        "format": thumbnails.FORMAT,
        "champion": None,
    }
    if champion:
        of_champion, labels = _predictions_of(champion, predictions, classes)
        of_champion = np.nan_to_num(of_champion)
        data["champion"] = {
            "name": champion.name,
            "predicted": labels.tolist(),
            "probabilities": _thousandths(of_champion),
        }
    return data


def _is_changed(
    predictions: pd.DataFrame, is_right: np.ndarray, champion: Champion | None, classes: Classes
) -> np.ndarray:
    """Return whether one of the two models is right and the other is not, (N,)."""
    if champion is None:
        return np.zeros(len(predictions), bool)
    _, labels = _predictions_of(champion, predictions, classes)
    was_right = labels == predictions["label"].to_numpy()
    return (labels >= 0) & (was_right != is_right)


def _predictions_of(champion: Champion, predictions: pd.DataFrame, classes: Classes) -> tuple[np.ndarray, np.ndarray]:
    """Return the champion's probabilities of the tested images, (N, C), and its labels, (N,).

    They are NaN and -1 where it was not compared.
    """
    rows = champion.predictions.assign(**{PREDICTED: predicted_labels(champion.predictions, classes)})
    by_id = rows.set_index("image_id").reindex(predictions["image_id"])
    labels = by_id[PREDICTED].fillna(-1).to_numpy(np.int64)
    return by_id[probability_columns(classes)].to_numpy(), labels


def _thousandths(probabilities: np.ndarray) -> list[int]:
    return np.rint(1000 * probabilities).astype(int).ravel().tolist()


def _decision(decision: Decision | None) -> str:
    if decision is None:
        return ""
    kind = "better" if decision.promote else "same"
    return f'<p class="decision {kind}">{sentence_html(decision.summary())}</p>'


def _compared_on(beside: SideBySide | None) -> str:
    if beside is None:
        return ""
    of_all = "all images of the test" if beside.is_whole else f"the {beside.num_images:,} images new to both"
    return (
        f"Both versions on {of_all}. Small numbers are 95\N{NO-BREAK SPACE}% intervals; the change is significant "
        "where its interval does not hold zero, and then coloured. Changes of shares are in points."
    )
