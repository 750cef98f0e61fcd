"""What forms show of the settings, as JSON schema: the common ones open, all others in one section that is closed.

Prefect makes the form of a deployment from the schema of its flow's parameters, and its server checks the parameters of
each run against it. A flow annotates its parameters with Data, Images, Training and Retraining, of which the form shows
the common settings; with Hidden[...], which it does not show; and with Others, its closed section, where a field that
stays empty changes nothing. Flows know no difference: `Job.override` puts what is set in Others into the sections.

How Prefect's pages read a schema (3.8):
- A button for each alternative of `anyOf` stands above the fields of the one that is chosen. This makes a section that
  is closed: one alternative without fields, and the section. An object is told from another by its keys.
- Of a property they keep names, types and choices when they ask the server whether a value is valid; bounds and
  patterns are lost, except in `allOf` and `anyOf`.
- A field with a default has it as a value when the form opens, and so has every yes or no. In Others no field has one,
  and yes or no is a choice.
- What a schema takes by `patternProperties` is checked by the server, but not shown.
"""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, GetJsonSchemaHandler, WithJsonSchema
from pydantic.fields import FieldInfo
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import CoreSchema

from bincount.frozen import Frozen, earlier_names
from bincount.settings import (
    SECTIONS,
    WORKSPACE_HELP,
    AuditConfig,
    DataConfig,
    ImageConfig,
    Job,
    RetrainConfig,
    TrainConfig,
    TuneConfig,
)

# What most people change. Forms, help and the reference begin with it: for each flow and command ten settings at most,
# but for `config`, which has those of all.
COMMON: dict[str, tuple[str, ...]] = {
    "data": ("source", "classes", "limit"),
    "images": ("image_size",),
    "training": ("model", "epochs", "learning_rate", "device"),
    "retraining": ("min_new_images",),
    "audit": ("folds",),
    "tuning": ("trials",),
}
COMMON_OUTSIDE = ("workspace",)  # of sections

LIMITS = {"ge": "at least {}", "gt": "more than {}", "le": "at most {}", "lt": "less than {}"}
SHOWN = ("title", "description", "type", "enum", "format", "default")  # of a property; the rest is a rule for values
# Alternatives of sections that are closed. The outer one is no object, since the first object is chosen for {}, the
# value of an open section without a change.
NO_CHANGE = {"title": "as it is", "type": "null"}
NO_FIELDS = {"title": "as it is", "type": "object", "properties": {}, "maxProperties": 0}


def limits(field: FieldInfo) -> str:
    """Return between which numbers a setting lies, in words; empty where it may be any."""
    found = {
        limit: value for part in field.metadata for limit in LIMITS if (value := getattr(part, limit, None)) is not None
    }
    return " and ".join(
        LIMITS[limit].format(f"{value:,}" if value >= 10000 else value) for limit, value in found.items()
    )


def steps(field: FieldInfo) -> str:
    """Return the steps of a setting, in words; empty where it has none."""
    step = next((part.multiple_of for part in field.metadata if getattr(part, "multiple_of", None)), None)
    return f"in steps of {step}" if step else ""


def describe(field: FieldInfo) -> str:
    """Return the description of a setting with its bounds, before the default where that is described."""
    text, bracket, default = (field.description or "").partition(" [default: ")
    within = ", ".join(filter(None, [limits(field), steps(field)]))
    return f"{text}; {within}{bracket}{default}" if within else f"{text}{bracket}{default}"


def is_common(section: str, name: str) -> bool:
    """Return whether most people change this setting."""
    return name in COMMON.get(section, ())


class Shown:
    """Annotation of a flow's parameter that is a section: the form shows its common settings, the server checks all."""

    def __init__(self, section: str) -> None:
        self.section = section

    def __get_pydantic_json_schema__(self, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        model = SECTIONS[self.section]
        plain = model.model_json_schema()["properties"]
        shown = {name: _field(model.model_fields[name], plain[name]) for name in COMMON[self.section]}
        hidden = {f"^{name}$": _rule(schema) for name, schema in plain.items() if name not in shown}
        return _section(model, shown, hidden)


class Closed:
    """Annotation of a flow's parameter that is a Job: a section that is closed, with every setting that is not common.

    sections: those that the flow takes
    """

    def __init__(self, *sections: str) -> None:
        self.sections = sections

    def __get_pydantic_json_schema__(self, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        sections = {name: self._section(name) for name in self.sections}
        opened = {"title": "change", "type": "object", "properties": sections, "additionalProperties": False}
        return {
            "description": "All other settings, section by section. A field that stays empty is as it is in the "
            "deployment, else the default that its description names.",
            "anyOf": [NO_CHANGE, opened],
        }

    def _section(self, name: str) -> dict[str, Any]:
        model = SECTIONS[name]
        plain = model.model_json_schema()["properties"]
        fields = {
            key: _empty_field(model.model_fields[key], schema)
            for key, schema in plain.items()
            if not is_common(name, key)
        }
        common = {f"^{key}$": _rule(schema) for key, schema in plain.items() if is_common(name, key)}
        opened = {**_section(model, fields, common), "title": "change"}
        return {"title": title(name), "description": opened.pop("description"), "anyOf": [NO_FIELDS, opened]}


def _section(model: type[Frozen], shown: dict[str, Any], hidden: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "description": model.__doc__,
        "properties": shown,
        "patternProperties": hidden | {f"^{name}$": {} for name in earlier_names(model)},
        "additionalProperties": False,
    }


def _field(field: FieldInfo, plain: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a setting that has its default in the form; one without a value is empty there."""
    schema = {**plain, **_without_null(plain), "description": describe(field)}
    schema.pop("anyOf", None)
    if schema.get("default", ...) is None:
        del schema["default"]
    rule = {name: schema.pop(name) for name in list(schema) if name not in SHOWN}
    return {**schema, "allOf": [rule]} if rule else schema


def _empty_field(field: FieldInfo, plain: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a setting that is empty in the form, with its default in the description."""
    description = describe(field)
    if "default" in plain and plain["default"] is not None and "[default: " not in description:
        description += f" [default: {_word(plain['default'])}]"
    schema = {"title": plain["title"], "description": description}
    of_value, optional = _without_null(plain), "anyOf" in plain
    if of_value.get("type") == "boolean":
        return {**schema, "enum": [True, False, *([None] if optional else [])]}
    rule = _rule(of_value)
    if optional:
        return {**schema, "anyOf": [rule, {"type": "null"}]}
    shown = {name: rule.pop(name) for name in list(rule) if name in SHOWN}
    return {**schema, **shown, **({"allOf": [rule]} if rule else {})}


def _rule(plain: dict[str, Any]) -> dict[str, Any]:
    """Return what a schema says of values."""
    return {name: value for name, value in plain.items() if name not in ("title", "description", "default")}


def _without_null(plain: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of the values that a setting has where it has one."""
    return next((each for each in plain.get("anyOf", ()) if each.get("type") != "null"), plain)


def _word(default: object) -> str:
    if isinstance(default, bool):
        return {True: "yes", False: "no"}[default]
    return ", ".join(map(str, default)) or "none" if isinstance(default, list | dict) else str(default)


def title(section: str) -> str:
    """Return the title of a section in forms, help and the reference."""
    return section.replace("_", " ").capitalize()


def _filled(section: str) -> Any:
    """Return the annotation by which a form fills in the defaults of the fields that it shows, and of no other."""
    return Field(json_schema_extra={"title": title(section), "default": {}})


Data = Annotated[DataConfig, Shown("data"), _filled("data")]
Images = Annotated[ImageConfig, Shown("images"), _filled("images")]
Training = Annotated[TrainConfig, Shown("training"), _filled("training")]
Retraining = Annotated[RetrainConfig, Shown("retraining"), _filled("retraining")]
Audit = Annotated[AuditConfig, Shown("audit"), _filled("audit")]
Tuning = Annotated[TuneConfig, Shown("tuning"), _filled("tuning")]
Hidden = SkipJsonSchema
# Its description, since a form drops that of a Field.
WorkspacePath = Annotated[
    Path,
    WithJsonSchema({"type": "string", "format": "path", "description": WORKSPACE_HELP}, mode="validation"),
    Field(json_schema_extra={"title": "Workspace"}),
]
_LAST = Field(json_schema_extra={"title": "Other settings"})
OthersOfPrepare = Annotated[Job | None, Closed("data", "images", "runner"), _LAST]
_OF_TRAIN = ("data", "images", "training", "registry", "launch", "promotion")
OthersOfTrain = Annotated[Job | None, Closed(*_OF_TRAIN, "evaluation"), _LAST]
OthersOfRun = Annotated[Job | None, Closed(*_OF_TRAIN, "evaluation", "runner"), _LAST]
_OF_RETRAIN = (*_OF_TRAIN, "evaluation", "runner", "retraining", "drift", "retention")
OthersOfRetrain = Annotated[Job | None, Closed(*_OF_RETRAIN), _LAST]
OthersOfTune = Annotated[Job | None, Closed(*_OF_TRAIN, "runner", "tuning"), _LAST]
OthersOfAudit = Annotated[Job | None, Closed(*_OF_TRAIN, "runner", "audit"), _LAST]
