"""Mistakes in the words of a command: the flag or key as it is written, and what may have been meant."""

import sys
from collections.abc import Iterable

from cyclopts import CycloptsError
from cyclopts.exceptions import MissingArgumentError, UnknownCommandError, UnknownOptionError
from pydantic import ValidationError

from bincount import backbones, settings
from bincount.mistakes import explain_values, flag, names_of, suggest

HELP_FLAGS = ("--help", "-h", "--help-all")
# Of an option of one command the one that does the same in others, which spelling would not suggest.
ELSEWHERE = {"--folds": "--cross-fit", "--cross-fit": "--folds"}


def explain(error: CycloptsError) -> str:
    """Describe what is wrong with the words of a command, one line for each mistake."""
    command = " ".join(("bincount", *(error.command_chain or ())))
    cause = error.__cause__
    if isinstance(cause, ValidationError):
        return "\n".join(explain_values(cause))
    if isinstance(error, UnknownOptionError):
        typed = (error.token.keyword or error.token.value).partition("=")[0]
        known = [name for argument in error.argument_collection if argument.parse for name in argument.names]
        other = ELSEWHERE.get(typed)
        meant = f"; did you mean {other}?" if other in known else suggest(typed, (*known, *HELP_FLAGS))
        return f"there is no option {typed}{meant}; `{command} --help` lists them"
    if isinstance(error, UnknownCommandError):
        typed = error.unused_tokens[0]
        what = "option" if typed.startswith("-") else "command"
        known = (name for name in error.app if name.startswith("-") == (what == "option"))
        return f"there is no {what} {typed}{suggest(typed, known)}; `{command} --help` lists them"
    error.verbose = False
    text = " ".join(str(error).split())
    if isinstance(error, MissingArgumentError):
        return f"{text.rstrip('.')}; `{command} --help` shows how"
    return text


def rename_flags(words: Iterable[str]) -> list[str]:
    """Replace the flags of earlier releases by those of today, which are the only ones that the help shows."""
    renamed = {
        flag(prefix + earlier): flag(prefix + name)
        for model in settings.SECTIONS.values()
        for earlier, name in names_of(model).items()
        if earlier != name
        for prefix in ("", "no_")
    }
    parts = (word.partition("=") for word in words)
    return _name_scorer(["".join((renamed.get(name, name), *value)) for name, *value in parts])


def _name_scorer(words: list[str]) -> list[str]:
    """Let `bincount audit --model champion` name who scores the bins, as --model does where nothing is trained.

    With the name of a network --model is the setting of that name, which the folds are trained with.
    """
    if words[:1] != ["audit"]:
        return words
    named = list(words)
    for position, word in enumerate(words):
        name, _, value = word.partition("=")
        value = value or (words[position + 1] if position + 1 < len(words) else "")
        if name == "--model" and not backbones.is_name(value):
            named[position] = word.replace("--model", "--scored-by", 1)
    return named


def fail(text: str) -> None:
    """Write an error to standard error and end the command with status 1."""
    print(f"bincount: {text}", file=sys.stderr)
    sys.exit(1)
