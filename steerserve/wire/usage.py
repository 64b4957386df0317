"""How many tokens a request read and generated."""

from __future__ import annotations

from pydantic import Field

from steerserve.wire.base import ResponseModel


class PromptTokensDetails(ResponseModel):
    """Where the prompt's tokens came from."""

    cached_tokens: int = Field(description="Tokens whose computation was shared with another request.")


class Usage(ResponseModel):
    """Counts over all choices; a prompt counts once however many choices it has."""

    prompt_tokens: int = Field(description="Tokens of the prompt.")
    completion_tokens: int = Field(description="Generated tokens, an end-of-sequence token included.")
    total_tokens: int = Field(description="Both together.")
    prompt_tokens_details: PromptTokensDetails = Field(description="About the prompt.")
