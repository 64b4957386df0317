"""What all request and response bodies have in common."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from steerserve.core.errors import InvalidRequestError
from steerserve.core.sent_names import nearest_name, short_name


class RequestModel(BaseModel):
    """A body, or part of one, that a client sends: lenient about what is there, strict about its types.

    Unknown keys are ignored, as OpenAI clients expect, and an explicit null means that the field was left out.
    """

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _null_means_omitted(cls, data: Any) -> Any:  # noqa: ANN401 whatever the client sent
        if isinstance(data, dict):
            return {key: value for key, value in data.items() if value is not None}
        return data


class StrictRequestModel(RequestModel):
    """A body in which a key that nobody knows is a mistake: a typo would silently be another piece of work."""

    model_config = ConfigDict(json_schema_extra={"additionalProperties": False})

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, data: Any) -> Any:  # noqa: ANN401 whatever the client sent
        unknown = next((key for key in data if key not in cls.model_fields), None) if isinstance(data, dict) else None
        if unknown is not None:
            near = nearest_name(unknown, cls.model_fields)
            hint = f"Did you mean '{near}'?" if near else f"Possible are {', '.join(cls.model_fields)}."
            name = short_name(unknown)
            raise InvalidRequestError(f"Unknown parameter: '{name}'. {hint}", param=name, code="unknown_parameter")
        return data


class ResponseModel(BaseModel):
    """A body, or part of one, that the server sends."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def absent_if_none(description: str) -> Any:  # noqa: ANN401 as pydantic's own Field
    """Declare a field that OpenAI's object does not have, written only where it says something."""
    return Field(default=None, exclude_if=_is_none, description=description)


def _is_none(value: object) -> bool:
    return value is None


Identifier = Annotated[str, Field(max_length=512)]
"""Text that a client sends for its own bookkeeping."""
