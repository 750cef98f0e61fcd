"""How many images each class has in each split, and what about the classes somebody should know before a training."""

import difflib
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from bincount.data.copies import TWO_CLASSES
from bincount.errors import DatasetError
from bincount.problem import EXTRA, SPLITS, Classes, normalize_name

FEWEST_IN_SPLIT = 10  # images of a class in val or test: of fewer, one image is more than ten points of its accuracy
NUM_NAMED = 10  # classes or folders in a sentence
NUM_EXAMPLES = 3


@dataclass(frozen=True)
class ClassBalance:
    """counts is (C, 3): images by class and split, in the order of the classes and of SPLITS.

    warnings has a sentence for each thing that somebody should look at.
    """

    classes: Classes
    counts: np.ndarray
    warnings: tuple[str, ...] = ()

    @property
    def shares(self) -> np.ndarray:
        """(C, 3): how each class is dealt to the splits; 0 for a class without images."""
        return self.counts / np.maximum(self.counts.sum(axis=1, keepdims=True), 1)

    @property
    def imbalance(self) -> float:
        """The largest class over the smallest that has images at all."""
        totals = self.counts.sum(axis=1)
        return float(totals.max() / totals[totals > 0].min())

    def by_class(self) -> pd.DataFrame:
        """A row a class with the columns class, train, val and test: numbers of images."""
        table = pd.DataFrame(self.counts, columns=list(SPLITS))
        table.insert(0, "class", self.classes.names)
        return table

    def table(self) -> pd.DataFrame:
        """A row a class and one for all: images and share of the class in each split, total, share of all images."""
        every = np.vstack([self.counts, self.counts.sum(axis=0)])
        total = every.sum(axis=1)
        table = pd.DataFrame({"class": [*self.classes.names, "all"]})
        for column, split in enumerate(SPLITS):
            table[split] = every[:, column]
            table[f"{split} %"] = np.round(100 * every[:, column] / np.maximum(total, 1), 1)
        table["total"] = total
        table["total %"] = np.round(100 * total / max(total[-1], 1), 1)
        return table


def weights(counts: np.ndarray) -> np.ndarray:
    """Loss weights (C,) of classes with so many images: inverse to their share, 1 on average; 0 for one without."""
    return counts.sum() / np.maximum(counts, 1) / np.count_nonzero(counts) * (counts > 0)


def measure(manifest: pd.DataFrame, classes: Classes) -> ClassBalance:
    """Count the assigned images of a manifest by class and split."""
    dealt = manifest[manifest["split"].notna()]
    counts = pd.crosstab(dealt["label"], dealt["split"]).reindex(
        index=range(len(classes)), columns=SPLITS, fill_value=0
    )
    return ClassBalance(classes=classes, counts=counts.to_numpy(np.int64))


def examine(manifest: pd.DataFrame, classes: Classes) -> ClassBalance:
    """Measure a whole manifest, and find what to warn of: what is empty, small, of no class, or of two."""
    balance = measure(manifest, classes)
    found = (_empty(balance), _small(balance), _untaken(manifest, classes), contradictions(manifest))
    return replace(balance, warnings=tuple(filter(None, found)))


def require_images(manifest: pd.DataFrame, classes: Classes) -> None:
    """Raise DatasetError when a class has no usable image; of counts only when none of them has one.

    Counts are a range, which a source need not fill: examine warns of those that are missing. A name without images is
    a typing error, or the wrong folder.
    """
    usable = manifest[(manifest["status"] == "ok") & manifest["label"].notna()]
    present = set(usable["label"].unique().tolist())
    empty = [name for label, name in enumerate(classes.names) if label not in present]
    if not empty or (classes.are_counts and present):
        return
    untaken = _untaken_names(manifest, classes)
    sentences = [f"no image has {_one_or_several(empty, 'the class', 'one of the classes')}"]
    sentences += _why_empty(manifest, empty)
    if untaken:
        sentences.append(f"no class took: {_counted(untaken)}")
    elif usable.empty:
        sentences.append("there is no good image of any other class either")
    raise DatasetError("; ".join([*sentences, *_hints(empty, untaken)]))


def require_folders(folders: Collection[str], classes: Classes) -> None:
    """Raise DatasetError when a source of class folders lacks that of a named class; what is in them is seen later."""
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


def _hints(empty: list[str], untaken: Collection[str]) -> Iterator[str]:
    """What may have been meant by classes without images, and what to do."""
    if guesses := [guess for name in empty for guess in _similar(name, untaken)]:
        yield f"did you mean {', '.join(map(_visible, guesses[:NUM_NAMED]))}?"
    if unwritable := [repr(name) for name in untaken if "," in name or name != name.strip()]:
        yield f"--classes cannot name {_listed(unwritable)}, for its comma or outer blanks: rename that folder"
    yield "correct --classes, or give the source images of every class"


def contradictions(manifest: pd.DataFrame) -> str:
    """How many images are left out since their photos stand in two classes, with examples; empty where none is."""
    rows = manifest[manifest["reason"].astype("str").str.startswith(TWO_CLASSES)]
    if rows.empty:
        return ""
    examples = [
        f"{row.image_id} as {row.class_name}{row.reason.removeprefix(TWO_CLASSES).replace(':', ' is', 1)}"
        for row in rows.drop_duplicates("sha256").head(NUM_EXAMPLES).itertuples()
    ]
    return (
        f"{len(rows)} images are left out, since their {rows['sha256'].nunique()} photos stand in two classes: "
        f"{'; '.join(examples)}; leave each photo in one class of the source"
    )


def _empty(balance: ClassBalance) -> str:
    totals = balance.counts.sum(axis=1)
    empty = [name for name, total in zip(balance.classes.names, totals, strict=True) if not total]
    if not empty:
        return ""
    none = _one_or_several(empty, "the class", "any of the classes")
    return f"no image has {none}: a model learns nothing of it; --classes names those that the source has"


def _small(balance: ClassBalance) -> str:
    """Of the classes that have images."""
    small = [
        f"{name} ({total} images: {', '.join(f'{n} {split}' for n, split in zip(counts, SPLITS, strict=True))})"
        for name, counts in zip(balance.classes.names, balance.counts.tolist(), strict=True)
        if (total := sum(counts)) and (not counts[0] or min(counts[1:]) < FEWEST_IN_SPLIT)
    ]
    if not small:
        return ""
    return f"too few images to judge a class by, fewer than {FEWEST_IN_SPLIT} in val or test: {_listed(small)}"


def _untaken(manifest: pd.DataFrame, classes: Classes) -> str:
    """Of folders: that records name other counts too is how the problem is chosen."""
    learned_beside = manifest.loc[manifest["split"] == EXTRA, "class_name"]
    is_folder = manifest["quantity"].isna() & ~manifest["class_name"].isin(learned_beside)
    untaken = _untaken_names(manifest[is_folder], classes)
    if not untaken:
        return ""
    similar = [
        f"{guess} is not {name}" for name in classes.names for guess in _similar(name, untaken, only_spelling=True)
    ]
    hint = f" ({_listed(similar)})" if similar else ""
    return f"no class took the folders {_counted(untaken)}{hint}; --classes names those that are learned from"


def _untaken_names(manifest: pd.DataFrame, classes: Classes) -> Counter:
    """The good images of each name that is no class."""
    taken = set(map(normalize_name, classes.names))
    names = manifest.loc[(manifest["status"] == "ok") & manifest["label"].isna(), "class_name"].value_counts()
    return Counter({name: int(count) for name, count in names.items() if name not in taken})


def _why_empty(manifest: pd.DataFrame, empty: list[str]) -> Iterable[str]:
    """For classes whose images are all set aside."""
    aside = manifest[manifest["status"] != "ok"]
    for name in empty:
        kinds = aside.loc[aside["class_name"] == normalize_name(name), "reason"].str.split(":").str[0].value_counts()
        if len(kinds):
            reasons = ", ".join(f"{kind} ({count})" for kind, count in kinds.items())
            yield f"all that {name} has is set aside: {reasons}"


def _similar(name: str, others: Iterable[str], *, only_spelling: bool = False) -> list[str]:
    """Of the others those that a name may mean: alike but for case, blanks, width or leading zeros, or nearly alike."""
    by_form = {}
    for other in others:
        by_form.setdefault(_form(other), []).append(other)
    forms = [_form(name)] if _form(name) in by_form else []
    if not forms and not only_spelling:
        forms = difflib.get_close_matches(_form(name), list(by_form), n=2, cutoff=0.75)
    return [other for form in forms for other in by_form[form]]


def _visible(name: str) -> str:
    """A name in quotation marks where nobody would see all of it: blanks around it, or characters without a shape."""
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
