"""What the server offers by name: models, presets and dictionaries."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from steerserve.wire.base import ResponseModel, StrictRequestModel, absent_if_none


class ModelObject(ResponseModel):
    """A model that requests can name."""

    id: str = Field(description="The name that requests send as `model`.")
    object: Literal["model"] = Field(default="model", description="Always `model`.")
    created: int = Field(description="Unix time in seconds at which the server loaded the model.")
    owned_by: str = Field(default="steerserve", description="Always `steerserve`.")
    root: str = Field(description="Id of the served model, without presets.")
    parent: str | None = Field(
        default=None, description="Id of the served model if this entry adds a preset to it; null otherwise."
    )
    max_model_len: int = Field(description="Largest number of tokens of a prompt and its answer together.")


class ModelList(ResponseModel):
    """All models that requests can name."""

    object: Literal["list"] = Field(default="list", description="Always `list`.")
    data: list[ModelObject] = Field(description="The served model, then the model with each usable preset.")
    has_more: bool = Field(default=False, description="Always false: the list is complete.")


class PresetObject(ResponseModel):
    """A preset: the version in use, and the state of its file."""

    name: str = Field(description="The preset's name.")
    object: Literal["preset"] = Field(default="preset", description="Always `preset`.")
    id: str = Field(description="The name that requests send as `model` to use the preset.")
    origin: Literal["folder", "bundled"] = Field(
        description="`folder` if the file is in `presets_dir`, `bundled` if it came with the package."
    )
    version: int | None = Field(description="Version number in the file; null if no version was ever valid.")
    description: str | None = Field(description="What the preset does.")
    model: str | None = Field(description="The model that the preset was made for; null if it is for any model.")
    system: str | None = Field(description="System prompt for conversations without one of their own.")
    sampling: dict[str, Any] = Field(description="Sampling defaults of the preset.")
    edits: list[dict[str, Any]] = Field(description="Edits of the preset, written as in `steering`.")
    checks: list[dict[str, Any]] = Field(description="Checks that `steerserve presets test` runs.")
    has_previous: bool = Field(
        description="Whether the version before the current one is kept; `?version=previous` returns it."
    )
    problem: str | None = absent_if_none(
        "Why the current file cannot be used, in a sentence; the other fields are then those of its last valid version."
    )
    text: str | None = absent_if_none("Text of the current file; only if one preset was requested.")


class PresetList(ResponseModel):
    """All presets."""

    object: Literal["list"] = Field(default="list", description="Always `list`.")
    data: list[PresetObject] = Field(description="The presets, sorted by name.")
    has_more: bool = Field(default=False, description="Always false: the list is complete.")


class DeletedPreset(ResponseModel):
    """A preset that was deleted."""

    name: str = Field(description="The preset's name.")
    object: Literal["preset"] = Field(default="preset", description="Always `preset`.")
    deleted: Literal[True] = Field(default=True, description="Always true.")


class LoadDictionaryRequest(StrictRequestModel):
    """A dictionary to load and serve; it replaces a loaded dictionary of the same id."""

    id: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        description="The short name that edits use for it: up to 64 letters, digits, `.`, `_`, `-`.",
        examples=["res17"],
    )
    source: str = Field(
        min_length=1,
        max_length=1024,
        description="bundled:MODEL/NAME, path:FOLDER, hf:REPOSITORY[/FOLDER] or sae_lens:RELEASE/SAE_ID.",
        examples=["bundled:smollm2-135m-instruct/res17"],
    )
    force: bool = Field(
        default=False,
        description="Load it even if it was made for a model of another name; the dictionary then carries warnings.",
    )


class DeletedDictionary(ResponseModel):
    """A dictionary that was unloaded."""

    id: str = Field(description="The dictionary's id.")
    object: Literal["dictionary"] = Field(default="dictionary", description="Always `dictionary`.")
    deleted: Literal[True] = Field(default=True, description="Always true.")


class DictionaryList(ResponseModel):
    """All loaded dictionaries."""

    object: Literal["list"] = Field(default="list", description="Always `list`.")
    data: list[dict[str, Any]] = Field(description="Dictionary objects; the default dictionary is marked.")
    has_more: bool = Field(default=False, description="Always false: the list is complete.")
