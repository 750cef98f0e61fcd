"""The base of all settings and results: models that never change and refuse unknown names."""

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """An immutable model; an unknown name is refused, so that a typing error is not silently a default."""

    model_config = ConfigDict(frozen=True, extra="forbid")
