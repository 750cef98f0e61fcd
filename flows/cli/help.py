"""The help of commands with many settings: `--help` shows the common ones, `--help-all` all, the others by group."""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from cyclopts import App, Argument, ArgumentCollection, Group, Parameter
from rich.console import Console

from bincount import forms
from bincount.settings import SECTIONS
from flows.cli import settings_file

ALL = "--help-all"
MOST = 20  # options of a command that shows all of them always
COMMON = Group("Most used settings", sort_key=0)
OWN = Group("Other options", sort_key=0.5)  # of a command, which are no settings
ORDER = [(section, name) for section, names in forms.COMMON.items() for name in names]
ORDER += [(name, name) for name in forms.COMMON_OUTSIDE]
SERVICE = [("serving", name) for name in ("host", "port", "insecure", "shadow", "capture")]  # forms have none of it
SERVICE += [("audit", "min_confidence"), ("data", "source"), *((name, name) for name in forms.COMMON_OUTSIDE)]
# Of a search, which finds model, epochs and learning rate itself.
SEARCH = [("data", "source"), ("data", "classes"), ("data", "limit"), ("images", "image_size")]
SEARCH += [("tuning", name) for name in ("space", "trials", "parallel", "hours", "budget")]
SEARCH += [(name, name) for name in forms.COMMON_OUTSIDE]


@dataclass
class Asked:
    """What the command line that is read now asks for."""

    everything: bool = False
    helping: bool = False
    hidden: dict[str, Group] = field(default_factory=dict)  # the group of each flag that is left out


_asked = Asked()


class Program(App):
    """An App whose help of a command with many settings begins with the common ones, and ends there as a rule."""

    def __call__(self, tokens: str | Iterable[str] | None = None, **options: Any) -> Any:
        words = sys.argv[1:] if tokens is None else tokens.split() if isinstance(tokens, str) else list(tokens)
        _asked.everything = ALL in words
        return super().__call__(words, **options)

    def help_print(self, tokens: Any = None, *, console: Console | None = None) -> None:
        """Print the help of a command, and where there are settings that it leaves out."""
        _asked.helping, _asked.hidden = True, {}
        try:
            super().help_print(tokens, console=console)
        finally:
            _asked.helping = False
        if _asked.hidden:
            groups = [group.name for group in sorted(set(_asked.hidden.values()), key=lambda group: group.sort_key)]
            command = " ".join(("bincount", *self.parse_commands(tokens)[0]))
            text = f"{len(_asked.hidden)} more settings, of {', '.join(groups)}: `{command} {ALL}` shows them."
            (console or self.console).print(text, markup=False, highlight=False)

    def assemble_argument_collection(self, **options: Any) -> ArgumentCollection:
        """Return the arguments of the command; for its help, as that shows them."""
        arguments = super().assemble_argument_collection(**options)
        if not _asked.helping:
            return arguments
        sections = dict(_find_sections(arguments))
        for argument in arguments:
            section, name = sections.get(id(argument), ("", ""))
            if section in SECTIONS:
                _change(argument, help=forms.describe(SECTIONS[section].model_fields[name]))
            if isinstance(default := argument.field_info.default, tuple | dict):
                _change(argument, show_default=_as_typed(default))
        if sum(argument.show and argument.parse for argument in arguments) <= MOST:
            return arguments
        return _common_first(arguments, sections)


def _find_sections(arguments: ArgumentCollection) -> Iterator[tuple[int, tuple[str, str]]]:
    """Yield for each argument that is a setting its section and its name; a setting in no section is its own."""
    for root in arguments:
        name = root.field_info.name
        if root.keys:
            continue
        section = settings_file.SECTIONS_OF.get(name, name)
        if section in SECTIONS and root.children:
            yield from ((id(argument), (section, argument.keys[-1])) for argument in root.children)
        elif name in forms.COMMON_OUTSIDE:
            yield id(root), (name, name)


def _common_first(arguments: ArgumentCollection, sections: dict[int, tuple[str, str]]) -> ArgumentCollection:
    """Return the arguments with the common settings in a group of their own, and the other settings hidden or after."""
    here = {section for section, _ in sections.values()}
    order = SERVICE if "serving" in here and "training" not in here else SEARCH if _is_search(here) else ORDER
    for argument in arguments:
        if sections.get(id(argument)) in order:
            _change(argument, group=(COMMON,))
        elif id(argument) in sections and argument.show and argument.parse and not _asked.everything:
            _asked.hidden[argument.name] = argument.parameter.group[0]
            _change(argument, show=False)
        elif id(argument) not in sections and not argument.children:
            _change(argument, group=(OWN,))
    ranks = {place: rank for rank, place in enumerate(order)}
    arguments.sort(key=lambda argument: ranks.get(sections.get(id(argument), ("", "")), len(ranks)))
    return arguments


def _is_search(sections: set[str]) -> bool:
    return "tuning" in sections and "audit" not in sections  # `bincount config` has those of all


def _as_typed(default: tuple | dict) -> str | bool:
    """Return a default of several values as a command line has them; False, which shows none, where it is empty."""
    pairs = default.items() if isinstance(default, dict) else ((value,) for value in default)
    return ", ".join("=".join(map(str, pair)) for pair in pairs) or False


def _change(argument: Argument, **options: Any) -> None:
    argument.parameter = Parameter.combine(argument.parameter, Parameter(**options))
