"""Models as `/v1/models` gives them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from steerserve.wire.base import ResponseModel


class ModelObject(ResponseModel):
    """A model that can be asked for."""

    id: str = Field(description="What requests send as `model`.")
    object: Literal["model"] = Field(default="model", description="Always this.")
    created: int = Field(description="Unix time in seconds at which the server loaded it.")
    owned_by: str = Field(default="steerserve", description="Always this.")
    root: str = Field(description="The model itself.")
    parent: str | None = Field(default=None, description="For a model with a preset: the model itself.")
    max_model_len: int = Field(description="Tokens of prompt and answer together, at most.")


class ModelList(ResponseModel):
    """All models."""

    object: Literal["list"] = Field(default="list", description="Always this.")
    data: list[ModelObject] = Field(description="The models.")
    has_more: bool = Field(default=False, description="Always false: the list is whole.")
