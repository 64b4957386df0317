"""Base classes of all request and response bodies."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from steerserve.core.errors import InvalidRequestError
from steerserve.core.names import nearest_name, short_name


class RequestModel(BaseModel):
    """A body, or part of one, that a client sends.

    Types are checked strictly. Unknown keys are ignored, as OpenAI clients expect, and null means that the field was
    left out.
    """

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _null_means_omitted(cls, data: Any) -> Any:  # noqa: ANN401 whatever the client sent
        if isinstance(data, dict):
            return {key: value for key, value in data.items() if value is not None}
        return data


def refuse_unknown_key(data: object, names: Collection[str], prefix: str = "") -> None:
    """Refuse an object that has a key beside `names`; `prefix` goes before the key in `param`, its dot included.

    Raises:
        InvalidRequestError: the object has another key; the message suggests the nearest of `names`.
    """
    unknown = next((key for key in data if key not in names), None) if isinstance(data, dict) else None
    if unknown is not None:
        near = nearest_name(unknown, names)
        hint = f"Did you mean '{near}'?" if near else f"Possible are {', '.join(names)}."
        param = f"{prefix}{short_name(unknown)}"
        raise InvalidRequestError(f"Unknown parameter: '{param}'. {hint}", param=param, code="unknown_parameter")


class StrictModel(BaseModel):
    """Data whose unknown keys and other types are refused, nulls included: edits, and the files that hold them."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class StrictRequestModel(RequestModel):
    """A body whose unknown keys are refused: with a typo ignored, the server would do other work than was meant."""

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
    """Declare a field that OpenAI's object does not have; it is left out of the JSON if its value is None."""
    return Field(default=None, exclude_if=_is_none, description=description)


def _is_none(value: object) -> bool:
    return value is None


Identifier = Annotated[str, Field(max_length=512)]
"""Text that a client sends for its own records."""
