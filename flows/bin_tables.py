"""Where bins were used, and what of them is taken away, as tables for the terminal and as JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import pandas as pd

from bincount.problem import BINS, Problem
from bincount.reporting.tables import Tables

if TYPE_CHECKING:  # they import MLflow, which takes seconds
    from bincount.forgetting import Plan
    from bincount.provenance import Provenance, Traced
    from bincount.tracking.usage import Artifact

SHORT = 12  # digits of a digest that people see
Artifacts = Mapping[str, Sequence["Artifact"]]  # by the id of a bin


def of_traced(traced: "Traced", artifacts: Artifacts, noun: str = "bin") -> Tables:
    """Return for each bin what is known of it, its uses, and where its picture lies."""
    tables = {}
    for found in traced.bins:
        tables |= _of_bin(found, artifacts.get(found.image_id, ()), noun)
    return tables | ({"Could not be read": _sentences(traced.problems)} if traced.problems else {})


def _of_bin(found: "Provenance", artifacts: Sequence["Artifact"], noun: str) -> Tables:
    name = f"{noun.capitalize()} {found.image_id}"
    facts = [
        ("record", found.class_name),
        ("status", ": ".join(filter(None, [found.status or "not in the dataset any more", found.reason]))),
        ("pictures", ", ".join(digest[:SHORT] for digest in found.digests)),
        ("same picture", ", ".join(found.copies)),
        ("elsewhere", ", ".join(found.elsewhere)),
    ]
    tables = {name: pd.DataFrame([fact for fact in facts if fact[1]], columns=["", "value"])}
    if found.uses:
        tables[f"{name}: snapshots"] = pd.DataFrame(
            [
                (
                    use.snapshot[:SHORT],
                    f"{use.frozen:%Y-%m-%d}",
                    *([use.bin_id] if found.copies else []),
                    use.sha256[:SHORT],
                    use.split or "not used",
                    use.label or use.reason,
                    use.label_source,
                )
                for use in found.uses
            ],
            columns=["snapshot", "frozen", *([noun] if found.copies else []), "picture", "split", "label", "of"],
        )
    trainings = {(name, role) for use in found.uses for name, role in use.trainings.items()}
    if trainings:
        tables[f"{name}: trainings"] = pd.DataFrame(sorted(trainings), columns=["folder in runs/", f"the {noun} was"])
    if found.versions:
        tables[f"{name}: versions"] = _sentences([_version(found, version) for version in found.versions])
    if found.verdicts:
        tables[f"{name}: verdicts"] = pd.DataFrame(found.verdicts).reindex(
            columns=["time", "reviewer", "verdict", "count"]
        )
    places = [*found.files, *found.packs, *found.folders, *map(_artifact, artifacts)]
    return tables | ({f"{name}: where its picture may be seen": _sentences(places)} if places else {})


def _version(found: "Provenance", version) -> str:
    splits = sorted({use.split for use in found.uses if version in use.versions and use.split})
    return f"{version}: {', '.join(splits)}"


def _artifact(artifact: "Artifact") -> str:
    sure = "" if artifact.is_sure else ", which may show it"
    return f"MLflow, run {artifact.run_name or artifact.run_id} ({artifact.run_id}): {artifact.path}{sure}"


def of_plan(plan: "Plan", problem: Problem = BINS) -> Tables:
    """Return what a plan takes away."""
    same = plan.same_as
    going = [
        (image_id, f"the same picture as {same[image_id]}" if image_id in same else "asked for")
        for image_id in plan.image_ids
    ]
    bins = plan.traced.bins
    places = [
        *(name for found in bins for name in found.files),
        *(f"{name}: its row is overwritten" for name in dict.fromkeys(name for found in bins for name in found.packs)),
        *(f"{name}: removed, and made again when asked for" for name in plan.folders),
    ]
    title = f"{problem.nouns.capitalize()} to be taken away"
    tables = {title: pd.DataFrame(going, columns=[problem.noun, "why"])}
    return tables | ({"What goes": _sentences(list(dict.fromkeys(places)))} if places else {}) | of_what_stays(plan)


def of_what_stays(plan: "Plan") -> Tables:
    """Return the copies that cannot be taken away from here, and the models that were trained on the bins."""
    stays = [
        *map(_artifact, plan.artifacts),
        *(f"dataset {where}: `bincount forget` with the source of that dataset" for where in plan.elsewhere),
        "exports, published buckets, files that were handed to people, and run pages of the Prefect server",
        "the source itself, from which it is not fetched any more",
    ]
    tables = {"What stays, and is to be removed by hand": _sentences(stays)}
    if plan.trained_versions:
        tables["Trained on them; a model does not unlearn"] = _sentences(list(map(str, plan.trained_versions)))
    return tables | ({"Could not be read": _sentences(plan.traced.problems)} if plan.traced.problems else {})


def as_json(traced: "Traced", artifacts: Artifacts) -> str:
    """Write all that is known as JSON; times are ISO 8601."""
    found = [
        asdict(each)
        | {
            "versions": [str(version) for version in each.versions],
            "trained_versions": [str(version) for version in each.trained_versions],
            "artifacts": [asdict(artifact) for artifact in artifacts.get(each.image_id, ())],
        }
        for each in traced.bins
    ]
    return json.dumps({"bins": found, "problems": traced.problems}, indent=2, default=lambda value: value.isoformat())


def _sentences(texts: Sequence[str]) -> pd.DataFrame:
    return pd.DataFrame({"": list(texts)})
