"""What all request and response bodies have in common."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from steerserve.core.errors import InvalidRequestError
from steerserve.core.names import nearest_name, short_name


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


def refuse_unknown_key(data: object, known: Collection[str], inside: str = "") -> None:
    """Refuse the first key of an object that is not `known`; `inside` is what `param` puts before it, dot included.

    Raises:
        InvalidRequestError: there is one.
    """
    unknown = next((key for key in data if key not in known), None) if isinstance(data, dict) else None
    if unknown is not None:
        near = nearest_name(unknown, known)
        hint = f"Did you mean '{near}'?" if near else f"Possible are {', '.join(known)}."
        param = f"{inside}{short_name(unknown)}"
        raise InvalidRequestError(f"Unknown parameter: '{param}'. {hint}", param=param, code="unknown_parameter")


class StrictRequestModel(RequestModel):
    """A body in which a key that nobody knows is a mistake: a typo would silently be another piece of work."""

    model_config = ConfigDict(json_schema_extra={"additionalProperties": False})

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, data: Any) -> Any:  # noqa: ANN401 whatever the client sent
        refuse_unknown_key(data, cls.model_fields)
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
