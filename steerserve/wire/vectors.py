"""`/v1/vectors`: the request that makes a steering vector, and the stored vectors."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from steerserve.core.literals import VECTOR_NAME, Pooling
from steerserve.wire.base import ResponseModel, StrictRequestModel, absent_if_none
from steerserve.wire.texts import Texts


class CreateVectorRequest(StrictRequestModel):
    """Two sets of texts; the difference of their mean activations is stored as a vector."""

    name: str = Field(
        pattern=VECTOR_NAME,
        description="Name of the vector in edits: up to 64 letters, digits, `.`, `_`, `-`.",
        examples=["formal"],
    )
    model: str | None = Field(default=None, description="Id of the served model. Default: the served model.")
    positive: Texts = Field(description="Texts that the vector leads towards.")
    negative: Texts = Field(description="Texts that the vector leads away from.")
    hook: str | None = Field(
        default=None,
        max_length=200,
        description="Hook point of the vector. Default: the hook point of the default dictionary.",
        examples=["blocks.17.hook_resid_post"],
    )
    pooling: Pooling = Field(
        default="mean",
        description="Which activations stand for a text: the `mean` over its tokens, or those at its `last` token. "
        "Special tokens and attention sinks do not count.",
    )
    replace: bool = Field(default=False, description="Whether to replace a stored vector of the same name.")


class VectorLayer(ResponseModel):
    """A vector at one hook point."""

    hook: str = Field(description="The hook point.")
    width: int = Field(description="Number of values.")
    norm: float = Field(description="Euclidean norm of the vector, which is the size of the change of `scale: 1`.")
    base64: str | None = absent_if_none("The values as little-endian float32 in base64; only with `values=true`.")


class VectorObject(ResponseModel):
    """A stored steering vector."""

    name: str = Field(description="Name of the vector in edits.")
    object: Literal["vector"] = Field(default="vector", description="Always `vector`.")
    model: str | None = Field(description="The model that the vector was made for; null if unknown.")
    method: str = Field(description="How the vector was made, or the file format that it was imported from.")
    created: int = Field(description="Unix time in seconds.")
    sha256: str = Field(description="SHA-256 of the vector's hook points and values.")
    layers: list[VectorLayer] = Field(
        description="The vector at each of its hook points; an edit with the vector applies at all of them."
    )
    notes: dict[str, str] = Field(description="Notes on how the vector was made, such as its `held_out_auc`.")
    problem: str | None = absent_if_none("Why the served model cannot use the vector, in a sentence.")


class VectorList(ResponseModel):
    """All stored vectors."""

    object: Literal["list"] = Field(default="list", description="Always `list`.")
    data: list[VectorObject] = Field(description="The vectors, sorted by name.")
    has_more: bool = Field(default=False, description="Always false: the list is complete.")


class DeletedVector(ResponseModel):
    """A vector that was deleted."""

    name: str = Field(description="The vector's name.")
    object: Literal["vector"] = Field(default="vector", description="Always `vector`.")
    deleted: Literal[True] = Field(default=True, description="Always true.")
