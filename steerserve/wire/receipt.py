"""The receipt of a steered answer as programs read it: what each edit of the request changed."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class EditReceipt(BaseModel):
    """What one edit changed."""

    model_config = ConfigDict(frozen=True, extra="allow")

    dictionary: str | None = Field(description="The dictionary's id; null for a vector.")
    sha256: str = Field(description="SHA-256 of the dictionary's weights, or of the vector.")
    hook: str = Field(description="The hook point.")
    feature: int | None = Field(description="Index of the feature in the dictionary; null for a vector.")
    label: str | None = Field(description="Label of the feature; null if it has none.")
    mode: str = Field(description="Mode of the edit.")
    scale: float | None = Field(description="The scale as the request gave it.")
    unit: str | None = Field(description="The unit of `scale`.")
    raw_scale: float | None = Field(description="The scale in units of activation.")
    tokens_edited: int = Field(description="Number of tokens that were edited.")
    tokens_skipped: int = Field(description="Number of tokens in the edit's positions that were not edited.")
    mean_activation: float = Field(description="Mean activation of the feature on the edited tokens, before the edit.")
    mean_change: float = Field(description="Mean of |dx| / |x| over the edited tokens.")


class Receipt(BaseModel):
    """The `steering` object of a response."""

    model_config = ConfigDict(frozen=True, extra="allow")

    fingerprint: str = Field(description="Fingerprint of the edits and of the contents that they used.")
    strength: float = Field(default=1.0, description="Factor by which every change was multiplied.")
    edits: list[EditReceipt] = Field(description="One entry for each edit.")
    warnings: list[str] = Field(default_factory=list, description="Warnings about the edits, in sentences.")

    def as_json(self) -> dict[str, Any]:
        """Return the receipt as JSON, as in the response."""
        return self.model_dump(mode="json", exclude_unset=True)
