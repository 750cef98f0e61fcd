"""Advice on the classes of a dataset: which have no images, or few, and which images are of no class or of two.

Each piece of advice is a sentence that says what to do, and guesses what may have been meant.
"""

import difflib
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace

import pandas as pd

from bincount.data import balance
from bincount.data.balance import ClassBalance
from bincount.data.copies import TWO_CLASSES
from bincount.data.manifest import REFERENCES
from bincount.errors import DatasetError
from bincount.problem import EXTRA, SPLITS, Classes, normalize_name

FEWEST_IN_SPLIT = 10  # images of a class in val or test: of fewer, one image is more than ten points of its accuracy
NUM_NAMED = 10  # classes or folders in a sentence
NUM_EXAMPLES = 3


def examine(manifest: pd.DataFrame, classes: Classes) -> ClassBalance:
    """Count a manifest's images, and warn of classes that are empty or small, and of images of no class or of two."""
    measured = balance.measure(manifest, classes)
    if REFERENCES in manifest:  # questions, whose answers are as frequent as they are asked
        return measured
    warnings = (_empty(measured), _small(measured), _untaken(manifest, classes), contradictions(manifest))
    return replace(measured, warnings=tuple(filter(None, warnings)))


def require_images(manifest: pd.DataFrame, classes: Classes) -> None:
    """Raise DatasetError when a class that must have a usable image has none, and say why that may be so."""
    empty = balance.find_empty(manifest, classes)
    if not empty:
        return
    untaken = _untaken_names(manifest, classes)
    sentences = [f"no image has {_one_or_several(empty, 'the class', 'one of the classes')}"]
    sentences += _why_empty(manifest, empty)
    if untaken:
        sentences.append(f"no class took: {_counted(untaken)}")
    elif not (manifest["status"] == "ok").any():
        sentences.append("there is no good image of any other class either")
    raise DatasetError("; ".join([*sentences, *_hints(empty, untaken)]))


def require_folders(folders: Collection[str], classes: Classes) -> None:
    """Raise DatasetError when a source of class folders lacks that of a named class; their content is not read."""
    there = set(map(normalize_name, folders))
    empty = [name for name in classes.names if normalize_name(name) not in there]
    if not empty or classes.are_counts:
        return
    taken = set(map(normalize_name, classes.names))
    untaken = sorted(name for name in folders if normalize_name(name) not in taken)
    sentences = [f"there is no folder of {_one_or_several(empty, 'the class', 'the classes')}"]
    if untaken:
        sentences.append(f"no class took: {_listed([repr(name) for name in untaken])}")
    raise DatasetError("; ".join([*sentences, *_hints(empty, untaken)]))


def contradictions(manifest: pd.DataFrame) -> str:
    """Say how many images are left out since their photos stand in two classes, with examples; empty where none is."""
    rows = manifest[manifest["reason"].astype("str").str.startswith(TWO_CLASSES)]
    if rows.empty:
        return ""
    examples = [
        f"{row.image_id} as {row.class_name}{row.reason.removeprefix(TWO_CLASSES).replace(':', ' is', 1)}"
        for row in rows.drop_duplicates("sha256").head(NUM_EXAMPLES).itertuples()
    ]
    photos = rows["sha256"].nunique()
    why = "they are one photo" if photos == 1 else f"their {photos} photos stand"
    return (
        f"{len(rows)} images are left out, since {why} in two classes: "
        f"{'; '.join(examples)}; leave each photo in one class of the source"
    )


def _hints(empty: list[str], untaken: Collection[str]) -> Iterator[str]:
    """Guess what was meant by classes without images, and say what to do."""
    if guesses := [guess for name in empty for guess in _similar(name, untaken)]:
        yield f"did you mean {', '.join(map(_visible, guesses[:NUM_NAMED]))}?"
    if unwritable := [repr(name) for name in untaken if "," in name or name != name.strip()]:
        yield f"--classes cannot name {_listed(unwritable)}, for its comma or outer blanks: rename that folder"
    yield balance.REMEDY


def _empty(measured: ClassBalance) -> str:
    totals = measured.counts.sum(axis=1)
    empty = [name for name, total in zip(measured.classes.names, totals, strict=True) if not total]
    if not empty:
        return ""
    none = _one_or_several(empty, "the class", "any of the classes")
    return f"no image has {none}: no model can be trained on it; --classes names those that the source has"


def _small(measured: ClassBalance) -> str:
    """Name the classes that have images, and too few of them."""
    small = [
        f"{name} ({total} images: {', '.join(f'{n} {split}' for n, split in zip(counts, SPLITS, strict=True))})"
        for name, counts in zip(measured.classes.names, measured.counts.tolist(), strict=True)
        if (total := sum(counts)) and (not counts[0] or min(counts[1:]) < FEWEST_IN_SPLIT)
    ]
    if not small:
        return ""
    return f"too few images to judge a class by, fewer than {FEWEST_IN_SPLIT} in val or test: {_listed(small)}"


def _untaken(manifest: pd.DataFrame, classes: Classes) -> str:
    """Name the folders that are no class; that records name other counts too is how the problem is chosen."""
    trained_beside = manifest.loc[manifest["split"] == EXTRA, "class_name"]
    is_folder = manifest["quantity"].isna() & ~manifest["class_name"].isin(trained_beside)
    untaken = _untaken_names(manifest[is_folder], classes)
    if not untaken:
        return ""
    similar = [
        f"{guess} is not {name}" for name in classes.names for guess in _similar(name, untaken, only_spelling=True)
    ]
    hint = f" ({_listed(similar)})" if similar else ""
    return f"no class took the folders {_counted(untaken)}{hint}; --classes names those that are trained on"


def _untaken_names(manifest: pd.DataFrame, classes: Classes) -> Counter:
    """Count the good images of each name that is no class."""
    taken = set(map(normalize_name, classes.names))
    names = manifest.loc[(manifest["status"] == "ok") & manifest["label"].isna(), "class_name"].value_counts()
    return Counter({name: int(count) for name, count in names.items() if name not in taken})


def _why_empty(manifest: pd.DataFrame, empty: list[str]) -> Iterable[str]:
    """Explain classes whose images are all quarantined."""
    quarantined = manifest[manifest["status"] != "ok"]
    for name in empty:
        kinds = (
            quarantined.loc[quarantined["class_name"] == normalize_name(name), "reason"]
            .str.split(":")
            .str[0]
            .value_counts()
        )
        if len(kinds):
            reasons = ", ".join(f"{kind} ({count})" for kind, count in kinds.items())
            yield f"all images of {name} are quarantined: {reasons}"


def _similar(name: str, others: Iterable[str], *, only_spelling: bool = False) -> list[str]:
    """Return the others that a name may mean: alike but for case, blanks, width or leading zeros, or nearly alike."""
    by_form = {}
    for other in others:
        by_form.setdefault(_form(other), []).append(other)
    forms = [_form(name)] if _form(name) in by_form else []
    if not forms and not only_spelling:
        forms = difflib.get_close_matches(_form(name), list(by_form), n=2, cutoff=0.75)
    return [other for form in forms for other in by_form[form]]


def _visible(name: str) -> str:
    """Quote a name that has more to it than people see: blanks around it, or characters without a shape."""
    return name if name.isprintable() and name == name.strip() else repr(name)


def _form(name: str) -> str:
    form = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
    return str(int(form)) if form.isdecimal() else form


def _one_or_several(names: list[str], one: str, several: str) -> str:
    return f"{one if len(names) == 1 else several} {_listed(names)}"


def _counted(counts: Counter) -> str:
    return _listed([f"{name!r} ({count:,} images)" for name, count in counts.most_common()])


def _listed(parts: list[str]) -> str:
    more = len(parts) - NUM_NAMED
    return ", ".join(parts[:NUM_NAMED]) + (f" and {more} more" if more > 0 else "")
