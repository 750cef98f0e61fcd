"""The problem: which classes there are, in which order, and into which splits their images are divided."""

import re
import unicodedata
from functools import cached_property
from typing import Any, ClassVar

from pydantic import Field, field_validator

from bincount.errors import SettingsError
from bincount.frozen import Frozen

SPLITS = ("train", "val", "test")
EXTRA = "extra"  # in place of a split: bins whose count is no class and that are trained on all the same
LONGEST_CLASS_NAME = 100


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
        """The value of each class, for RMSE and expectation: its name as a number, or its position."""
        if all(map(str.isdecimal, self.names)):
            return tuple(float(name) for name in self.names)
        return tuple(float(label) for label in range(len(self.names)))

    @property
    def are_counts(self) -> bool:
        """Whether the names are whole numbers, such as 0..5."""
        return all(map(str.isdecimal, self.names))

    def __len__(self) -> int:
        return len(self.names)
