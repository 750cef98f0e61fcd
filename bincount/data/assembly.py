"""Assemble a dataset's bins into a snapshot: label them as records and reviewers say, group, assign, and freeze."""

from pathlib import Path

import pandas as pd

from bincount.data import advice, copies, forgotten, groups, items, labels, names, snapshots, splits, sync
from bincount.data import bins as row_store
from bincount.data.snapshots import Snapshot
from bincount.problem import Classes, Problem, normalize_name
from bincount.settings import DataConfig


def freeze_fetched(dataset: Path, data_config: DataConfig) -> Snapshot:
    """Build the snapshot of all that was fetched, as the settings have it. Raises DatasetError as build does."""
    data, rows = data_config, row_store.merge(dataset)
    return build(
        dataset, rows, data.class_set, data.source, data.extra_names, data.keep_splits, problem=data.description
    )


def build(
    dataset: Path,
    bins: pd.DataFrame,
    classes: Classes,
    source: str,
    extra_names: tuple[str, ...] = (),
    keep_splits: bool = False,
    problem: Problem | None = None,
) -> Snapshot:
    """Label, group and assign a dataset's bins, and freeze the result.

    A bin that people have reviewed has the class that they found; where they call it unusable, or are not sure, it is
    left out. Its split stays assigned meanwhile.

    Bins of extra_names, which are counts that are no class, are assigned too; those of train become extra, and the
    others are not used. Names of classes are compared after Unicode normalisation. Photos whose copies have different
    labels are left out. keep_splits takes the splits that the source's folders give, instead of assigning the images.
    Raises DatasetError where the table of verdicts is damaged; when no bin has one of the classes, or a class that is
    no count has none, before any image is assigned to a split; and when splits are to be kept and one of the three is
    not given.
    """
    unlisted = sync.unlisted(dataset)
    bins = forgotten.leave_out(dataset, bins)
    grouped = _group(_quarantine_hidden(bins))  # first, since a bin is what it is whatever people say of its label
    manifest = _label(labels.take_reviews(dataset, grouped), classes)
    names_with_label = [*map(normalize_name, classes.names), *extra_names]
    manifest = copies.leave_out_contradictions(manifest, names_with_label, unlisted)
    advice.require_images(manifest, classes)
    with row_store.locked(dataset):
        manifest["split"] = manifest["image_id"].map(splits.load(dataset))
        if keep_splits:
            manifest = copies.leave_out_moved(manifest, unlisted)
            before, given = manifest["split"], splits.given(manifest, problem or Problem.of(classes))
            manifest["split"] = before.astype("str").where(before.notna(), given)
        manifest = splits.assign(manifest, extra_names)
        splits.save(dataset, manifest)
        if not keep_splits:
            manifest = copies.keep_in_one_split(manifest)
        snapshot = snapshots.freeze(splits.mark_extra(manifest), classes, source, dataset, problem)
        items.keep(snapshot, bins[~bins["image_id"].isin(forgotten.read(dataset).image_ids)])  # by now
        return snapshot


def _group(bins: pd.DataFrame) -> pd.DataFrame:
    """Add the group: of a quarantined bin it is the bin alone."""
    good = bins[bins["status"] == "ok"]
    group = groups.assign(good, by_picture=good["items"].isna().all()).reindex(bins.index)
    return bins.assign(group=group.fillna(bins["image_id"]))


def _label(bins: pd.DataFrame, classes: Classes) -> pd.DataFrame:
    """Add the label: null where a bin is quarantined or of no class."""
    positions = {normalize_name(name): label for label, name in enumerate(classes.names)}
    label = bins["class_name"].map(pd.Series(positions)).where(bins["status"] == "ok")
    return bins.assign(label=label.astype("Int8"))


def _quarantine_hidden(bins: pd.DataFrame) -> pd.DataFrame:
    """Quarantine what tools keep beside the pictures, such as .ipynb_checkpoints; it is not fetched any more."""
    hidden = (bins["status"] == "ok") & bins["image_id"].str.contains(names.HIDDEN)
    if not hidden.any():
        return bins
    return bins.assign(
        status=bins["status"].mask(hidden, row_store.QUARANTINED),
        reason=bins["reason"].mask(hidden, "hidden: a copy that a tool keeps beside the pictures"),
    )
