"""Presets as the administration lists them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from steerserve.wire.base import ResponseModel, absent_if_none


class PresetObject(ResponseModel):
    """A preset: what is in use, and how its file is."""

    name: str = Field(description="What requests call it.")
    object: Literal["preset"] = Field(default="preset", description="Always this.")
    id: str = Field(description="What requests can send as `model` to use it.")
    origin: Literal["folder", "bundled"] = Field(description="Whether its file is in `presets_dir` or in the package.")
    version: int | None = Field(description="As its file counts; null where no version of it was ever good.")
    description: str | None = Field(description="What it does.")
    model: str | None = Field(description="The model that it was made for; null for any.")
    system: str | None = Field(description="System prompt of conversations that bring none.")
    sampling: dict[str, Any] = Field(description="Defaults of sampling.")
    edits: list[dict[str, Any]] = Field(description="What it does, as in `steering`.")
    checks: list[dict[str, Any]] = Field(description="What `steerserve presets test` tries.")
    has_previous: bool = Field(description="Whether the version before is kept: `?version=previous` gives it.")
    problem: str | None = absent_if_none(
        "Why the file cannot be used as it is now, in a sentence; the fields are those of its last good version."
    )
    text: str | None = absent_if_none("The file, as it is now; where one preset was asked for.")


class PresetList(ResponseModel):
    """All presets."""

    object: Literal["list"] = Field(default="list", description="Always this.")
    data: list[PresetObject] = Field(description="In order of their names.")
    has_more: bool = Field(default=False, description="Always false: the list is whole.")


class DeletedPreset(ResponseModel):
    """A preset that is gone."""

    name: str = Field(description="What requests called it.")
    object: Literal["preset"] = Field(default="preset", description="Always this.")
    deleted: Literal[True] = Field(default=True, description="Always this.")
