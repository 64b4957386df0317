"""What is asked of `/admin/dictionaries`, and what a dictionary that was unloaded leaves."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from steerserve.wire.base import ResponseModel, StrictRequestModel


class LoadDictionaryRequest(StrictRequestModel):
    """A dictionary to serve from now on, in place of one of the same id where there is one."""

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
        description="Use it also where it was made for a model of another name; it then carries warnings.",
    )


class DeletedDictionary(ResponseModel):
    """A dictionary that is served no longer."""

    id: str = Field(description="What edits called it.")
    object: Literal["dictionary"] = Field(default="dictionary", description="Always this.")
    deleted: Literal[True] = Field(default=True, description="Always this.")


class DictionaryList(ResponseModel):
    """All dictionaries that are loaded."""

    object: Literal["list"] = Field(default="list", description="Always this.")
    data: list[dict[str, Any]] = Field(description="Dictionary objects, the default one marked.")
    has_more: bool = Field(default=False, description="Always false: the list is whole.")
