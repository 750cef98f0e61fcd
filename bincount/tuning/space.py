"""The settings that a search varies, each with a range or choices, as a TOML file has them.

[training]
learning_rate = {low = 1e-4, high = 1e-1, log = true}
batch_size = [32, 64, 128]

[images]
image_size = [96, 128]
"""

import json
import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from bincount.errors import SettingsError
from bincount.frozen import Frozen
from bincount.mistakes import explain_values, suggest
from bincount.problem import Classes
from bincount.settings import SECTIONS, Job
from bincount.training.spec import is_own_model

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Value = bool | int | float | str

SEARCHED = ("training", "images")  # sections
NOT_SEARCHED = {
    "training.weights": "they belong to a model; make a search for each",
    "training.weights_licence": "it changes no result",
    "training.normalization": "it belongs to the weights",
    "training.keep": "it decides which epoch a trial is judged by",
    "training.precision": "it is chosen for the machine",
    "training.device": "it says where a trial is trained, not how",
    "training.seed": "a seed is better than another by chance; --seeds-per-trial shows by how much",
    "training.members": "each network costs as much as a trial; set it when you train the winner",
    "training.miss_cost": "it says what mistakes cost; no score on val follows from it",
    "training.min_precision": "it says which mistakes are rare; no score on val follows from it",
    "training.debug": "it changes no result",
}
BACKBONES = ("resnet18", "resnet34", "mobilenet_v2", "efficientnet_v2_s")
LEARNING_RATES = (1e-4, 1e-1)
WEIGHT_DECAYS = {"adamw": (1e-3, 1.0), "adam": (1e-6, 1e-2), "sgd": (1e-6, 1e-2)}  # by optimizer
EXAMPLES = "a range such as {low = 0.3, high = 1.0}, or choices such as [32, 64]"


class Range(Frozen):
    """Numbers from low to high, both included: in steps, or evenly on a logarithmic scale."""

    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = None


class Space(Frozen):
    """The searched settings by qualified name, such as training.learning_rate, each with its range or its choices.

    path is the file that they were read from, for messages.
    """

    parameters: dict[str, Range | tuple[Value, ...]]
    path: Path | None = None

    def apply(self, job: Job, values: dict[str, Value]) -> Job:
        """Return the job with these values in place of its own; a default that follows from one of them, follows."""
        sections: dict[str, dict[str, Value]] = {}
        for name, value in values.items():
            section, key = name.split(".")
            sections.setdefault(section, {})[key] = value
        return job.override(Job(**{name: SECTIONS[name](**changes) for name, changes in sections.items()}))

    def given(self, job: Job) -> dict[str, Value]:
        """Return what the job itself has for the searched settings, which need not lie in the space."""
        split = {name: name.split(".") for name in self.parameters}
        return {name: getattr(getattr(job, section), key) for name, (section, key) in split.items()}

    def distributions(self) -> "dict[str, BaseDistribution]":
        """Return the space as Optuna takes it."""
        return {name: _distribution(name, values) for name, values in self.parameters.items()}

    def values(self, name: str) -> list[Value]:
        """Return all values of a searched setting that has choices or whole numbers; none where it is not searched."""
        values = self.parameters.get(name, ())
        if isinstance(values, Range):
            return list(range(int(values.low), int(values.high) + 1, int(_step(name, values) or 1)))
        return list(values)

    def most_epochs(self, job: Job) -> int:
        """Return the most epochs that a trial of the job can have; those of trial 0 may lie outside the space."""
        epochs = self.parameters.get("training.epochs", (job.training.epochs,))
        most = int(epochs.high) if isinstance(epochs, Range) else max(map(int, epochs))
        return max(most, job.training.epochs)

    def describe(self) -> dict[str, str]:
        """Return the space as people read it, by qualified name: `0.0001 to 0.1, log`, or `32, 64, 128`."""
        return {
            name: f"{values.low:g} to {values.high:g}"
            + (", log" if values.log else f", in steps of {values.step:g}" if values.step else "")
            if isinstance(values, Range)
            else ", ".join(map(str, values))
            for name, values in self.parameters.items()
        }

    def where(self, name: str) -> str:
        """Return where a setting of the space is written, to begin a message with."""
        section, _, key = name.partition(".")
        return f"{f'{self.path}: ' if self.path else ''}[{section}] {key}"


def find_space(job: Job, classes: Classes | None = None) -> Space:
    """Return the space that a job searches: that of its file, or the default one.

    classes are by default those of the settings. Raises SettingsError with a line for each mistake.
    """
    classes = classes or job.data.class_set
    space, mistakes = _read(job.tuning.space) if job.tuning.space else (default_space(job, classes), [])
    _require_none(mistakes + (_mistakes(space, job, classes) if space.parameters or not mistakes else []))
    return space


def default_space(job: Job, classes: Classes | None = None) -> Space:
    """Return the space that is searched where no file is given.

    The job's own settings lie in it, except a weight decay of 0, so that the sampler can learn from trial 0.
    """
    training = job.training
    losses = (
        ("cross_entropy", "mixed", "ordinal") if (classes or job.data.class_set).ordered else ("cross_entropy", "mixed")
    )
    parameters: dict[str, Range | tuple[Value, ...]] = {
        "training.learning_rate": _around(*LEARNING_RATES, training.learning_rate, log=True),
        "training.batch_size": _among((32, 64, 128), training.batch_size),
        "training.epochs": _among((8, 12, 15), training.epochs),
        "training.weight_decay": _around(*WEIGHT_DECAYS[training.optimizer], training.weight_decay, log=True),
        "training.min_crop": _around(0.3, 1.0, training.min_crop),
        "training.loss": losses,
    }
    if not is_own_model(training.weights):  # which come with a head
        parameters["training.head"] = ("linear", "mlp")
    if training.weights == "imagenet" and training.model in BACKBONES:
        parameters["training.model"] = BACKBONES
    return Space(parameters=parameters)


def _around(low: float, high: float, given: float, *, log: bool = False) -> Range:
    inside = given > 0 or not log
    return Range(low=min(low, given) if inside else low, high=max(high, given), log=log)


def _among(choices: tuple[int, ...], given: int) -> tuple[int, ...]:
    return tuple(sorted({*choices, given}))


def read_space(path: Path) -> Space:
    """Read a space from a TOML file. Raises SettingsError with a line for each mistake in how it is written."""
    space, mistakes = _read(path)
    _require_none(mistakes)
    return space


def _read(path: Path) -> tuple[Space, list[str]]:
    """Read a space from a TOML file; return what is well written, and a line for each mistake in the rest."""
    mistakes, parameters = [], {}
    for section, settings in _parse(path).items():
        # A setting outside sections with a range is a table to TOML, as a section is.
        if not isinstance(settings, dict) or (settings and settings.keys() <= Range.model_fields.keys()):
            mistakes.append(f"{path}: {section} is in no section; write it below [training] or [images]")
            continue
        for key, value in settings.items():
            try:
                parameters[f"{section}.{key}"] = _read_values(value)
            except ValueError as error:
                mistakes.append(f"{path}: [{section}] {key} {error}")
    return Space(parameters=parameters, path=path), mistakes


def _require_none(mistakes: list[str]) -> None:
    if mistakes:
        raise SettingsError("\n".join(mistakes))


def _parse(path: Path) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"there is no file {path}; correct --space, or leave it out for the default") from None
    except OSError as error:
        raise SettingsError(f"{path} cannot be read ({error.strerror}); give --space a file that can") from error
    except ValueError as error:  # so are those of TOML and of UTF-8
        reason = " ".join(str(error).split())
        raise SettingsError(f"{path} is not valid TOML ({reason}); correct it there") from error


def _read_values(value: Any) -> Range | tuple[Value, ...]:
    """Return a range or choices as the file has them. Raises ValueError."""
    if isinstance(value, list):
        if not all(isinstance(choice, bool | int | float | str) for choice in value):
            raise ValueError("has a list or a table among its choices; write numbers, words, true or false")
        return tuple(value)
    if not isinstance(value, dict):
        raise ValueError(f"takes {EXAMPLES}, not {json.dumps(value, default=str)}")  # noqa: TRY004 - of a file
    for key in value.keys() - Range.model_fields.keys():
        raise ValueError(f"has no {key}{suggest(key, Range.model_fields)}; a range has low, high, log and step")
    for key in ("low", "high", "step"):
        number = value.get(key, 0)
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            raise ValueError(f"takes a number for {key}, not {json.dumps(number, default=str)}")
    if not {"low", "high"} <= value.keys():
        raise ValueError("has a range without low or high; write both, as in {low = 0.3, high = 1.0}")
    if not isinstance(value.get("log", False), bool):
        raise ValueError("takes true or false for log")  # noqa: TRY004 - of a file
    return Range(**value)


def _mistakes(space: Space, job: Job, classes: Classes | None) -> list[str]:
    """Return a line for each mistake: what cannot be searched, or not be trained with the rest.

    The models of the settings check each bound and each choice.
    """
    mistakes = {name: _check(name, values) for name, values in space.parameters.items()}
    for name, text in _check_together(space, job, classes).items():
        mistakes[name] = mistakes[name] or [text]
    if not space.parameters:
        return [f"{space.path or 'the space'} has no settings; give each {EXAMPLES}"]
    return [f"{space.where(name)} {text}" for name, texts in mistakes.items() for text in texts]


def _check(name: str, values: Range | tuple[Value, ...]) -> list[str]:
    section, _, key = name.partition(".")
    if section not in SEARCHED:
        return ["cannot be searched, only settings of [training] and [images]; give it to the command"]
    if key not in SECTIONS[section].model_fields:
        other = next((each for each in SEARCHED if key in SECTIONS[each].model_fields), None)
        meant = f"; it is one of [{other}]" if other else suggest(key, SECTIONS[section].model_fields)
        return [f"is no setting of [{section}]{meant}; `bincount config` shows all"]
    if name in NOT_SEARCHED:
        return [f"cannot be searched: {NOT_SEARCHED[name]}"]
    if isinstance(values, Range):
        return list(islice(_range_mistakes(name, values), 1))
    if len(set(values)) < max(2, len(values)):
        return ["needs two different choices or more; give a single value to the command"]
    return _refused(name, values)


def _range_mistakes(name: str, values: Range) -> Iterator[str]:
    """Yield what is wrong with a range; what comes after the first supposes that the first was not there."""
    field, least = _field(name), _multiple_of(name)
    low, high, step = values.low, values.high, _step(name, values)
    if field.annotation not in (int, float):
        yield "takes choices in a list, not a range"
    if field.annotation is int and not all(isinstance(number, int) for number in (low, high, step or 1)):
        yield "takes whole numbers for low, high and step"
    yield from _refused(name, (low, high))
    if low >= high:
        yield f"has low {low:g}, which is not below high {high:g}; write the smaller as low"
    if values.log and (low <= 0 or step is not None or least > 1):
        yield "takes log = true without a step only, from a low above 0 on, and not for multiples; take it out"
    if step is None:
        return
    if step <= 0:
        yield f"has step {step:g}; write one above 0"
    if field.annotation is int and step % least:
        yield f"has step {step:g}; write a multiple of {least}"
    if not math.isclose(round((high - low) / step) * step, high - low):
        yield f"does not reach high {high:g} from low {low:g} in steps of {step:g}; correct one of them"


def _refused(name: str, values: tuple[Value, ...]) -> list[str]:
    """Return the texts of the settings' model for each value that it refuses."""
    section, _, key = name.partition(".")
    mistakes = []
    for value in values:
        try:
            SECTIONS[section].model_validate_json(json.dumps({key: value}), strict=True)
        except ValidationError as error:
            mistakes += [text.lstrip(": ") for text in explain_values(error, SECTIONS[section], written=lambda _: "")]
    return mistakes


def _check_together(space: Space, job: Job, classes: Classes | None) -> dict[str, str]:
    """Return what does not fit the job, or other settings of the space, by setting."""
    choices = {name: values for name, values in space.parameters.items() if isinstance(values, tuple)}
    weights, mistakes = job.training.weights, {}
    if "ordinal" in choices.get("training.loss", ()) and not (classes or job.data.class_set).ordered:
        mistakes["training.loss"] = "has ordinal, which needs classes with an order; take it out, or add --ordered"
    if "training.model" in choices and weights not in ("imagenet", "none"):
        mistakes["training.model"] = f"cannot be searched with the weights of one model, {weights}; take it out"
    if "small" in choices.get("training.model", ()) and weights == "imagenet":
        mistakes["training.model"] = "has small, for which there are no ImageNet weights; take it out, or add "
        mistakes["training.model"] += "`--weights none`"
    if True in choices.get("training.freeze_backbone", ()) and weights == "none":
        mistakes["training.freeze_backbone"] = "has true, and random weights have to be trained; take it out, or give "
        mistakes["training.freeze_backbone"] += "--weights imagenet or a file"
    if "training.head" in choices and is_own_model(weights):
        mistakes["training.head"] = f"cannot be searched with weights that have a head, {weights}; take it out"
    return mistakes


def _field(name: str) -> FieldInfo:
    section, _, key = name.partition(".")
    return SECTIONS[section].model_fields[key]


def _multiple_of(name: str) -> int:
    return next((part.multiple_of for part in _field(name).metadata if hasattr(part, "multiple_of")), 1)


def _step(name: str, values: Range) -> int | float | None:
    """Return the step of a range: a whole number's is 1, or what it has to be a multiple of."""
    if values.step is None and _field(name).annotation is int and not values.log:
        return _multiple_of(name)
    return values.step


def _distribution(name: str, values: Range | tuple[Value, ...]) -> "BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(values, tuple):
        return CategoricalDistribution(values)
    step = _step(name, values)
    if _field(name).annotation is int:
        return IntDistribution(int(values.low), int(values.high), log=values.log, step=int(step or 1))
    return FloatDistribution(float(values.low), float(values.high), log=values.log, step=step)
