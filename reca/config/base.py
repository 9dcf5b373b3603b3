"""The base class of all sections of the configuration."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A frozen part of the configuration; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")
