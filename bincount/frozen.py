"""The base of all settings and results: models that never change and refuse unknown names."""

from collections.abc import Iterator

from pydantic import AliasChoices, BaseModel, ConfigDict


class Frozen(BaseModel):
    """An immutable model; an unknown name is refused, so that a typing error is not silently a default."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def earlier_names(model: type[Frozen]) -> Iterator[str]:
    """Yield the names that earlier releases gave to fields of a model, which it takes still."""
    for field in model.model_fields.values():
        if isinstance(field.validation_alias, AliasChoices):
            yield from map(str, field.validation_alias.choices[1:])


def accept_earlier_names(schema: dict, model: type[Frozen]) -> None:
    """Let the earlier names of settings pass a model's JSON schema, by which Prefect checks parameters, unlisted."""
    if names := list(earlier_names(model)):
        schema["patternProperties"] = {f"^({'|'.join(names)})$": {}}
