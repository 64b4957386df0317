"""`/v1/completions`: the request, the answer and the chunks of a stream."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from steerserve.core.errors import InvalidRequestError, UnsupportedParameterError
from steerserve.wire.base import ResponseModel, absent_if_none
from steerserve.wire.generation import INT64_MAX, GenerationFields, Usage
from steerserve.wire.unsupported import COMPLETIONS, documented, refuse_unsupported
from steerserve.wire.watching import WatchedToken, features_field, prompt_features_field

Prompt = str | tuple[int, ...]
"""A text, or token ids."""

_PROMPT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}},
        {"type": "array", "items": {"type": "integer"}},
        {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}},
    ]
}


def _extend_schema(schema: dict[str, Any]) -> None:
    schema["properties"]["prompt"] |= _PROMPT_SCHEMA
    for key in ("type", "items"):
        schema["properties"]["prompt"].pop(key, None)
    schema["properties"].update(documented(COMPLETIONS))


class CompletionRequest(GenerationFields):
    """A raw prompt to continue. Unknown fields are ignored; null means that the field was left out."""

    model_config = ConfigDict(json_schema_extra=_extend_schema)

    prompt: tuple[Prompt, ...] = Field(
        description="A text, token ids, or a list of either; each prompt is continued n times.",
        examples=["The bridge over the river"],
    )
    max_tokens: int = Field(
        default=16,
        ge=0,
        le=INT64_MAX,
        description="Largest number of generated tokens; with 0 the prompt is only read (for `echo`).",
    )
    echo: bool = Field(default=False, description="Whether the text begins with the prompt.")
    logprobs: int | None = Field(
        default=None,
        ge=0,
        le=20,
        description="Return the log-probability of each token, and those of this many likeliest tokens.",
    )
    best_of: int | None = Field(default=None, ge=1, le=128, description="Must be 1 or equal to `n`.")

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, data: Any) -> Any:  # noqa: ANN401 whatever the client sent
        if isinstance(data, dict):
            refuse_unsupported(data, COMPLETIONS)
        return data

    @field_validator("prompt", mode="before")
    @classmethod
    def _as_list_of_prompts(cls, value: object) -> tuple[Prompt, ...]:
        if isinstance(value, str):
            return (value,)
        if not isinstance(value, list):
            kind, expected = "one_or_many", "a string, an array of strings, or one or more arrays of token ids"
            raise PydanticCustomError(kind, "{expected}", {"expected": expected})
        if not value:
            raise InvalidRequestError("Invalid value for 'prompt': the array is empty.", param="prompt")
        if type(value[0]) is int:
            return (_token_ids(value, "prompt"),)
        return tuple(_prompt(prompt, f"prompt[{index}]") for index, prompt in enumerate(value))

    @model_validator(mode="after")
    def _refuse_ranking(self) -> CompletionRequest:
        if self.best_of not in {None, 1, self.n}:
            message = f"'best_of' must be 1 or equal to 'n' ({self.n}), not {self.best_of}: samples are not ranked."
            raise UnsupportedParameterError(message, param="best_of", code="unsupported_value")
        return self


def _prompt(value: object, param: str) -> Prompt:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return _token_ids(value, param)
    message = f"Invalid type for '{param}': expected a string or an array of token ids."
    raise InvalidRequestError(message, param=param, code="invalid_type")


def _token_ids(values: list[Any], param: str) -> tuple[int, ...]:
    for index, value in enumerate(values):
        if type(value) is not int:
            message = f"Invalid type for '{param}[{index}]': expected a token id, which is an integer."
            raise InvalidRequestError(message, param=f"{param}[{index}]", code="invalid_type")
    return tuple(values)


class CompletionLogprobs(ResponseModel):
    """Log-probabilities in the shape of text completions: four lists of equal length."""

    tokens: list[str] = Field(
        description="Text of each token. A token that is only part of a character is written as `bytes:\\xNN`."
    )
    token_logprobs: list[float | None] = Field(
        description="Natural logarithm of each token's probability, before temperature; at least -9999. Null for a "
        "prompt's first token."
    )
    top_logprobs: list[dict[str, float] | None] = Field(
        description="At each position the likeliest tokens and the token of the text, with their log-probabilities."
    )
    text_offset: list[int] = Field(description="Offset of each token in the choice's text, in characters.")


class CompletionChoice(ResponseModel):
    """One completion, or the part of it that a chunk adds."""

    index: int = Field(description="Index of the prompt times n, plus index of the sample.")
    text: str = Field(description="The generated text.")
    logprobs: CompletionLogprobs | None = Field(
        default=None, description="Log-probabilities of the tokens; null unless `logprobs` was set."
    )
    finish_reason: Literal["stop", "length"] | None = Field(
        default=None,
        description="`stop`: the model or a stop string ended the text. `length`: the token limit ended it. Null in "
        "all chunks of a stream but the choice's last.",
    )
    stop_reason: str | int | None = absent_if_none("The stop string or stop token that ended the text.")
    features: list[WatchedToken] | None = features_field()
    prompt_features: list[WatchedToken] | None = prompt_features_field()
    steering: dict[str, Any] | None = absent_if_none("Receipt of this choice; only if the answer has several choices.")


class CompletionChunk(ResponseModel):
    """One event of a streamed answer."""

    id: str = Field(description="Id of the answer, equal in all chunks; starts with `cmpl-`.")
    object: Literal["text_completion"] = Field(default="text_completion", description="Always `text_completion`.")
    created: int = Field(description="Unix time in seconds.")
    model: str = Field(description="The model as the request named it.")
    choices: list[CompletionChoice] = Field(
        description="The choices, in order of `index`. A chunk of a stream has one, or none if it has the usage."
    )
    system_fingerprint: str = Field(description="Equal for equal model, server and steering.")
    steering: dict[str, Any] | None = absent_if_none(
        "Receipt: the edits that were applied, to choice 0 if there are several, or to the chunk's choice in a stream. "
        "Absent without steering."
    )


class CompletionUsageChunk(CompletionChunk):
    """A chunk of a stream with `stream_options.include_usage`."""

    usage: Usage | None = Field(
        default=None,
        description="Numbers of tokens; null in all chunks but the last, unless `continuous_usage_stats` is set.",
    )


class Completion(CompletionChunk):
    """The answer to a request that is not streamed."""

    usage: Usage = Field(description="Numbers of tokens read and generated.")
