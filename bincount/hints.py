"""Commands that sentences suggest, completed with the options that say where the present command looks.

Sentences name commands between backticks: `bincount approve 2`. Whoever works in another workspace than the default
one has to type it with --workspace. Only the command line knows that; what is read elsewhere, as a page of a run or a
tag of a version, keeps the short form.
"""

import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass

COMMAND = re.compile(r"`(bincount [^`]+)`")  # in a sentence
NOT_ASKED = ("config", "backbones")  # commands that show what there is, wherever they look


@dataclass
class _Typed:
    """What remember was given last."""

    given: Mapping[str, str]
    takes: Callable[[list[str]], frozenset[str]]


_typed = _Typed({}, lambda words: frozenset())


def remember(given: Mapping[str, str], takes: Callable[[list[str]], frozenset[str]]) -> None:
    """Keep the options that the present command was given and that say where it looks, in place of those before.

    given has their values by flag. takes returns the flags that a command has, by the words that were typed for it.
    """
    _typed.given, _typed.takes = given, takes


def complete(text: str) -> str:
    """Return text in which each command between backticks has the options remembered that it takes and lacks."""
    return COMMAND.sub(lambda found: f"`{_complete(found[1])}`", text) if _typed.given else text


def _complete(command: str) -> str:
    words = command.split()[1:]
    if not words or words[0] in NOT_ASKED or "--help" in words:
        return command
    known, has = _typed.takes(words), {word.partition("=")[0] for word in words}
    options = [(flag, value) for flag, value in _typed.given.items() if flag in known and flag not in has]
    return " ".join([command, *(f"{flag} {shlex.quote(value)}" for flag, value in options)])
