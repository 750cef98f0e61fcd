"""By what an audit ranks the records: the picture alone, or also earlier pictures, or also a model of changes.

Each audit tries all that it can have, on records that it makes wrong on purpose, and takes what finds most of them.
"""

import logging
from dataclasses import dataclass

import numpy as np
import pandas as pd

from bincount.evaluation import audit_quality, change_evidence
from bincount.evaluation import earlier as earlier_pictures
from bincount.evaluation.audit import Audit, Scorer
from bincount.evaluation.earlier import EarlierPictures
from bincount.evaluation.record_errors import RecordErrors
from bincount.settings import Device
from bincount.text import percent

logger = logging.getLogger(__name__)

MOST_JUDGED = 50_000  # bins by which the ranking is judged: the figures of more differ little, and take minutes
DECISIVE = "recall at 5 %"  # the figure by which it is decided what to rank by


@dataclass(frozen=True)
class Quality:
    """How many records that were made wrong on purpose the ranking finds, and what the probabilities promise.

    earlier are the earlier pictures by which bins are ranked; None where there are none, or they find no more.
    not_used says in sentences what else was tried, and finds no more.
    """

    found: pd.DataFrame
    promise: str
    earlier: EarlierPictures | None = None
    not_used: str = ""

    def figures(self) -> dict[str, float]:
        """Return the figures that stand in the headline, the terminal and MLflow, where the bins are enough."""
        if self.found.empty:
            return {}
        by_score = self.found.set_index(["score", "measure"])["value"]
        wanted = {
            "precision_at_50": ("p_wrong", "precision at 50"),
            "precision_at_50_rarest": ("rarest record", "precision at 50"),
            "recall_at_5_percent": ("p_wrong", DECISIVE),
            "recall_at_5_percent_alone": ("picture alone", DECISIVE),
        }
        found = {name: float(by_score[key]) for name, key in wanted.items() if key in by_score.index}
        return found | {"num_with_earlier": len(self.earlier) if self.earlier else 0}


def ways_to_rank(
    audit: Audit,
    scores: pd.DataFrame,
    pairs_of_bins: pd.DataFrame,
    errors: RecordErrors,
    changes: Scorer | None,
    device: Device,
) -> dict[str, EarlierPictures]:
    """Return what bins can be ranked by beside their picture, by name: less comes first."""
    records = audit.plan().set_index("image_id")["recorded"]
    found = earlier_pictures.find(pairs_of_bins, records, scores, audit.outputs)
    if found is None:
        return {}
    ways = {"the earlier pictures": found}
    if changes:
        answers = change_evidence.ask_in_audit(audit, changes, device)
        if evidence := change_evidence.add(found, answers, scores, errors):
            ways["the earlier pictures and the model of changes"] = evidence.earlier
    return ways


def judge(scores: pd.DataFrame, audit: Audit, errors: RecordErrors, ways: dict[str, EarlierPictures]) -> Quality:
    """Judge the ranking each way, and choose the one that finds most wrong records, of equal ones that with less."""
    if scores.empty:
        return Quality(pd.DataFrame(), "")
    some = scores.sample(min(len(scores), MOST_JUDGED), random_state=0)
    tried = {
        name: audit_quality.measure(some, audit.outputs, errors, errors, earlier=way)
        for name, way in (ways or {"": None}).items()
    }
    recalls = {name: _recall(measured, "p_wrong") for name, measured in tried.items()}
    chosen = max(recalls, key=recalls.get)
    found, earlier, recall = tried[chosen], ways.get(chosen), recalls[chosen]
    alone = _recall(found, audit_quality.ALONE)  # NaN where none of these bins has an earlier picture
    if recall <= alone:
        found = found[found["score"] != "p_wrong"].replace({"score": {audit_quality.ALONE: "p_wrong"}})
        chosen, earlier, recall = "", None, alone
    names = ["", *ways]
    not_used = [
        f"Ranking by {name} was tried and is not used: checking 5 % of the {audit.snapshot.problem.nouns} finds "
        f"{percent(recalls[name])} of the records that were made wrong on purpose that way, and {percent(recall)} "
        "as it is."
        for name in names[names.index(chosen) + 1 :]  # what comes before is used, too
        if not np.isnan(alone)
    ]
    logger.info("%s", " ".join(not_used) or f"ranked by {chosen or 'the picture alone'}")
    return Quality(
        found[found["score"].isin(["p_wrong", audit_quality.ALONE, audit_quality.RAREST])],
        audit_quality.promise(some, audit.outputs, errors).describe(),
        earlier,
        " ".join(not_used),
    )


def _recall(measured: pd.DataFrame, score: str) -> float:
    """Return the figure that decides, DECISIVE, of a score; NaN where it was not measured."""
    found = measured.loc[(measured["measure"] == DECISIVE) & (measured["score"] == score), "value"]
    return float(found.iloc[0]) if len(found) else np.nan
