"""Stored steering vectors, as they are asked for and given."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from steerserve.core.literals import VECTOR_NAME, Pooling
from steerserve.wire.base import ResponseModel, StrictRequestModel, absent_if_none
from steerserve.wire.texts import Texts


class CreateVectorRequest(StrictRequestModel):
    """Two sets of texts, whose difference is stored under a name."""

    name: str = Field(
        pattern=VECTOR_NAME,
        description="What edits call it: up to 64 letters, digits, `.`, `_`, `-`.",
        examples=["formal"],
    )
    model: str | None = Field(default=None, description="The served model, the only one that can read.")
    positive: Texts = Field(description="Texts that it leads to.")
    negative: Texts = Field(description="Texts that it leads away from.")
    hook: str | None = Field(
        default=None,
        max_length=200,
        description="Hook point; that of the default dictionary if absent.",
        examples=["blocks.17.hook_resid_post"],
    )
    pooling: Pooling = Field(
        default="mean", description="`mean` over a text's tokens, or its `last` one; special ones and sinks left out."
    )
    replace: bool = Field(default=False, description="Take the place of a vector of the same name.")


class VectorLayer(ResponseModel):
    """A vector at one hook point."""

    hook: str = Field(description="The hook point.")
    width: int = Field(description="How many values it has.")
    norm: float = Field(description="Its length: what `scale: 1` adds.")
    base64: str | None = absent_if_none("Little-endian float32, where asked for.")


class VectorObject(ResponseModel):
    """A stored steering vector."""

    name: str = Field(description="What edits call it.")
    object: Literal["vector"] = Field(default="vector", description="Always this.")
    model: str | None = Field(description="The model that it was made for; null where that is not known.")
    method: str = Field(description="How it was made, or in which format it came.")
    created: int = Field(description="Unix time in seconds.")
    sha256: str = Field(description="Of its hook points and values.")
    layers: list[VectorLayer] = Field(description="One edit with the vector edits all of them.")
    notes: dict[str, str] = Field(description="What its maker wrote down, such as its `held_out_auc`.")
    problem: str | None = absent_if_none("Why the served model cannot use it, in a sentence.")


class VectorList(ResponseModel):
    """All stored vectors."""

    object: Literal["list"] = Field(default="list", description="Always this.")
    data: list[VectorObject] = Field(description="In order of their names.")
    has_more: bool = Field(default=False, description="Always false: the list is whole.")


class DeletedVector(ResponseModel):
    """A vector that is gone."""

    name: str = Field(description="What edits called it.")
    object: Literal["vector"] = Field(default="vector", description="Always this.")
    deleted: Literal[True] = Field(default=True, description="Always this.")
