"""The problem: its classes and their order, the words for what is photographed, and the splits of images."""

import difflib
import re
import tomllib
import unicodedata
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, ValidationError, field_validator

from bincount.errors import SettingsError
from bincount.frozen import Frozen

SPLITS = ("train", "val", "test")
LOOK_ALIKE = "groups of look-alike pictures"
EXTRA = "extra"  # in place of a split: bins whose count is no class and that are trained on all the same
LONGEST_CLASS_NAME = 100
LONGEST_WORD, LONGEST_SENTENCE = 40, 300  # in a description
DESCRIPTION = "problem.toml"  # beside the source
DEFAULT_CLASSES = "0..5"


def normalize_name(name: str) -> str:
    """Compose accents (NFC): macOS writes é as two characters, everybody else as one, and both mean the same class."""
    return unicodedata.normalize("NFC", name)


def _rising_ranges(longest: int = 3) -> str:
    """Return a pattern for `A..B` with A < B, which compares numbers of up to so many digits, digit by digit.

    Of two longer numbers it takes any.
    """
    to, ranges, groups = r"\s*\.\.\s*0*", [], 0
    for digits in range(1, longest + 1):
        any_number = rf"[1-9]\d{{{digits - 1}}}" if digits > 1 else r"\d"
        ranges.append(rf"{any_number}{to}[1-9]\d{{{digits},}}")  # B has more digits
        for equal in range(digits):  # the first digits are the same, the next one is smaller in A
            groups += bool(equal)
            start, same = (rf"([1-9]\d{{{equal - 1}}})", rf"\{groups}") if equal else ("", "")
            rest, smallest = rf"\d{{{digits - equal - 1}}}", 0 if equal or digits == 1 else 1
            steps = "|".join(rf"{digit}{rest}{to}{same}[{digit + 1}-9]" for digit in range(smallest, 9))
            ranges.append(rf"{start}(?:{steps}){rest}")
    ranges.append(rf"[1-9]\d{{{longest},}}{to}[1-9]\d{{{longest},}}")
    return rf"^\s*0*(?:{'|'.join(ranges)})\s*$"


TWO_NAMES = r"[^,\s][^,]*,[,\s]*[^,\s]"
NAMED_TWICE = r"(?:^|,)\s*([^,\s](?:[^,]*[^,\s])?)\s*,(?:.*,)?\s*\1\s*(?:,|$)"


class Classes(Frozen):
    """The classes of a problem, in order of their labels 0..C-1."""

    # What `parse` takes, as JSON schema says it. In a condition, of which forms make no choice between two fields; and
    # as alternatives, since an error on a pattern shows the pattern.
    RULE: ClassVar[dict[str, Any]] = {
        "if": {},
        "then": {"oneOf": [{"pattern": _rising_ranges()}, {"pattern": TWO_NAMES, "not": {"pattern": NAMED_TWICE}}]},
    }

    names: tuple[str, ...] = Field(min_length=2, description="class names; the position is the label")
    ordered: bool = Field(description="whether the order means more, so that RMSE and expectation make sense")

    @field_validator("names")
    @classmethod
    def _distinct(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(map(normalize_name, names))) < len(names):
            raise ValueError(f"class names must be distinct, got {', '.join(names)}")
        longest = max(names, key=len)
        if len(longest) > LONGEST_CLASS_NAME:  # they are part of the names of metrics
            raise ValueError(f"class names have at most {LONGEST_CLASS_NAME} characters, got {longest}")
        return names

    @classmethod
    def parse(cls, text: str, ordered: bool | None = None) -> "Classes":
        """Read `0..5` (a range of counts) or `good,defective` (names).

        Classes are ordered unless said otherwise when every name is a whole number.
        """
        counts = re.fullmatch(r"\s*(\d+)\s*\.\.\s*(\d+)\s*", text)
        if counts:
            low, high = int(counts[1]), int(counts[2])
            names = tuple(str(count) for count in range(low, high + 1))
        else:
            names = tuple(normalize_name(name.strip()) for name in text.split(",") if name.strip())
        if len(names) < 2:
            raise SettingsError(
                f"{text!r} names fewer than two classes; write a range as 0..5 or names as good,defective"
            )
        return cls(names=names, ordered=all(map(str.isdecimal, names)) if ordered is None else ordered)

    @cached_property
    def values(self) -> tuple[float, ...]:
        """The value of each class, for RMSE and expectation: its name as a number, below zero too, or its position."""
        if all(name.removeprefix("-").isdecimal() for name in self.names):
            return tuple(float(name) for name in self.names)
        return tuple(float(label) for label in range(len(self.names)))

    @property
    def are_counts(self) -> bool:
        """Whether the names are whole numbers from zero on, such as 0..5."""
        return all(map(str.isdecimal, self.names))

    def __len__(self) -> int:
        return len(self.names)


class Problem(Frozen):
    """What is photographed and what is predicted of it, in the words that people read.

    The defaults are those of counting the items in bins. A file of a description may give the classes too, which a
    stored description leaves to the snapshot or the model that it is part of.
    """

    noun: str = Field("bin", min_length=1, max_length=LONGEST_WORD, description="what is photographed: box")
    nouns: str = Field(
        default_factory=lambda values: f"{values.get('noun', '')}s",
        min_length=1,
        max_length=LONGEST_WORD,
        description="its plural: boxes [default: with an s]",
    )
    purpose: str = Field(
        "Counts the items in a bin from a photo",
        min_length=1,
        max_length=LONGEST_SENTENCE,
        description="what a model does, before the list of classes",
    )
    answer: str = Field("count", min_length=1, max_length=LONGEST_WORD, description="what a class is: condition")
    unit: str = Field("items", max_length=LONGEST_WORD, description="unit of errors, of classes with an order")
    classes: str | None = Field(None, description="the classes, as --classes takes them")
    ordered: bool | None = Field(None, description="whether they have an order, as --ordered says")
    positive: str | None = Field(None, description="of two classes the one to be found [default: the second]")
    licence: str = Field("", max_length=LONGEST_SENTENCE, description="sentence on the pictures, for the model card")
    limits: tuple[str, ...] = Field((), description="sentences on what a model cannot know, for the model card")

    @field_validator("positive")
    @classmethod
    def _as_classes_are(cls, name: str | None) -> str | None:
        return name and normalize_name(name.strip())

    @classmethod
    def of(cls, classes: Classes) -> "Problem":
        """Return the description where nobody has given one: counts are of bins, names of whatever is on a picture."""
        return BINS if classes.are_counts else PICTURES

    @property
    def examples(self) -> str:
        """What is predicted, one by one: images, or questions about them."""
        return "questions" if self.noun == "question" else "images"

    @property
    def group_nouns(self) -> str:
        """The plural of what intervals are over: images of one group are of one bin, or pictures that look alike."""
        if self.noun == "question":
            return "bins"
        return LOOK_ALIKE if self.noun == "picture" else self.nouns

    @property
    def group_noun(self) -> str:
        """The singular of group_nouns."""
        if self.noun == "question":
            return "bin"
        return "group of look-alike pictures" if self.noun == "picture" else self.noun

    @staticmethod
    def count(num_examples: int, examples: str, num_groups: int, group_nouns: str) -> str:
        """Return what scores are of: `580 images of 420 bins`, or `580 questions about 420 bins`."""
        of = "of" if examples == "images" else "about"
        return f"{num_examples:,} {examples} {of} {num_groups:,} {group_nouns}"

    @staticmethod
    def each_of(group_nouns: str) -> str:
        """Return what a sentence that asks for more of them names: pictures, where group_nouns are groups of these."""
        return "pictures" if group_nouns == LOOK_ALIKE else group_nouns

    def positive_label(self, classes: Classes) -> int | None:
        """Return the label of the positive class, of two classes; of counts only where the description names one."""
        if len(classes) != 2:
            return None
        if self.positive in classes.names:
            return classes.names.index(self.positive)
        return None if classes.are_counts else 1


BINS = Problem(
    limits=(
        "Nothing can be seen of what is hidden behind other items or behind the bin's bands, and records may be wrong: "
        "neither the model nor the record is proof.",
        "It was tested on photos from the same source. Another camera, light or kind of bin needs a test of its own.",
    )
)
PICTURES = Problem(
    noun="picture",
    purpose="Predicts from a photo which it is",
    answer="class",
    unit="classes",
    limits=(
        "Nothing can be said about what the photo does not show, and class folders may be wrong: neither the model nor "
        "the folder is proof.",
        "It was tested on photos from the same source. Another camera, light or subject needs a test of its own.",
    ),
)


def find_description(source: str) -> Path | None:
    """Return the description beside the pictures of a source that is a folder, where it has one."""
    path = Path(source) / DESCRIPTION
    return path if "://" not in source and path.is_file() else None


def read_description(path: Path) -> Problem:
    """Read a description. Raises SettingsError where the file cannot be read, or says what cannot be."""
    try:
        return _read_description(path, path.stat().st_mtime_ns)
    except FileNotFoundError:
        raise SettingsError(f"there is no description of a problem at {path}; correct --problem") from None
    except OSError as error:
        raise SettingsError(f"{path} cannot be read ({error.strerror}); let this user read it") from error


@lru_cache(maxsize=8)
def _read_description(path: Path, _modified: int) -> Problem:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # so are those of TOML and of UTF-8
        reason = " ".join(str(error).split())
        raise SettingsError(f"{path} is not valid TOML ({reason}); correct it there") from error
    if isinstance(content.get("classes"), list):
        content["classes"] = ",".join(map(str, content["classes"]))
    try:
        described = Problem.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise SettingsError(f"{path}: {_explain(str(first['loc'][0]), first['type'], first['msg'])}") from None
    try:
        classes = Classes.parse(described.classes or DEFAULT_CLASSES, described.ordered)
    except (SettingsError, ValueError) as error:
        first = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        reason = first.removeprefix("Value error, ")
        raise SettingsError(f"{path}: classes: {reason}") from None
    if described.positive and described.positive not in classes.names:
        known = ", ".join(classes.names)
        raise SettingsError(f"{path}: positive: {described.positive} is none of the classes {known}; name one of them")
    return described


def _explain(name: str, kind: str, message: str) -> str:
    """Describe a mistake in a description, from pydantic's kind and message of it."""
    if kind == "extra_forbidden":
        meant = difflib.get_close_matches(name, Problem.model_fields, n=1)
        asked = f"; did you mean {meant[0]}?" if meant else ""
        return f"a description has no {name}{asked}; it may have {', '.join(Problem.model_fields)}"
    if kind == "tuple_type":
        return f'{name} takes a list of sentences, as in {name} = ["A sentence."]'
    return f"{name}: {message[0].lower()}{message[1:]}; correct it there"
