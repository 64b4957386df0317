"""`/v1/chat/completions`: the request, the answer and the chunks of a stream."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from steerserve.core.errors import InvalidRequestError, UnsupportedParameterError
from steerserve.wire.base import Identifier, ResponseModel, absent_if_none
from steerserve.wire.generation import INT64_MAX, GenerationFields, Usage
from steerserve.wire.messages import MAX_MESSAGES, Message
from steerserve.wire.unsupported import CHAT, documented, refuse_unsupported
from steerserve.wire.watching import WatchedToken, features_field, prompt_features_field


class ChatCompletionRequest(GenerationFields):
    """A conversation to continue. Unknown fields are ignored; null means that the field was left out."""

    model_config = ConfigDict(json_schema_extra=lambda schema: schema["properties"].update(documented(CHAT)))

    messages: list[Message] = Field(
        min_length=1,
        max_length=MAX_MESSAGES,
        fail_fast=True,
        description="The conversation so far.",
        examples=[[{"role": "user", "content": "Tell me about yourself."}]],
    )
    max_completion_tokens: int | None = Field(
        default=None,
        ge=1,
        le=INT64_MAX,
        description="Largest number of generated tokens. Default: as many as the context has room for.",
    )
    max_tokens: int | None = Field(
        default=None,
        ge=1,
        le=INT64_MAX,
        description="Older name of `max_completion_tokens`, which takes precedence if both are sent.",
    )
    logprobs: bool = Field(default=False, description="Whether to return the log-probability of each generated token.")
    top_logprobs: int | None = Field(
        default=None, ge=0, le=20, description="With `logprobs`: number of likeliest tokens to return at each position."
    )
    add_generation_prompt: bool = Field(
        default=True, description="Whether the template opens an assistant's message after the last message."
    )
    tools: list[Any] = Field(
        default_factory=list, description="Must be empty, unless `tool_choice` is `none`: tools are not supported."
    )
    functions: list[Any] = Field(
        default_factory=list,
        description="Must be empty, unless `function_call` is `none`: functions are not supported.",
    )
    tool_choice: Any = Field(default=None, description="`none` or `auto`.")
    function_call: Any = Field(default=None, description="`none` or `auto`.")
    parallel_tool_calls: bool | None = Field(
        default=None, description="Accepted without effect, because the model never calls a tool."
    )
    metadata: dict[Annotated[str, Field(max_length=64)], Identifier] | None = Field(
        default=None, max_length=16, description="Returned unchanged in the response; nothing is stored."
    )
    safety_identifier: Identifier | None = Field(
        default=None, description="Accepted without effect; for the client's own records."
    )
    prompt_cache_key: Identifier | None = Field(
        default=None, description="Accepted without effect: prefixes are always shared."
    )
    service_tier: Literal["auto", "default"] | None = Field(
        default=None, description="Accepted without effect: this server has one tier."
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, data: Any) -> Any:  # noqa: ANN401 whatever the client sent
        if isinstance(data, dict):
            _refuse_callable_tools(data)
            refuse_unsupported(data, CHAT)
        return data

    @model_validator(mode="after")
    def _top_logprobs_need_logprobs(self) -> ChatCompletionRequest:
        if self.top_logprobs is not None and not self.logprobs:
            message = "'top_logprobs' is only possible with 'logprobs': true."
            raise InvalidRequestError(message, param="top_logprobs")
        return self

    @property
    def token_limit(self) -> int | None:
        """Largest number of generated tokens; None if the client set no limit."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens


def _refuse_callable_tools(body: dict[str, Any]) -> None:
    for field, choice in (("tools", "tool_choice"), ("functions", "function_call")):
        if body.get(field) and body.get(choice) != "none":
            message = f"'{field}' is not supported by this server yet. Leave it out, or send '{choice}': \"none\"."
            raise UnsupportedParameterError(message, param=field)


class TopLogprob(ResponseModel):
    """One of the likeliest tokens at a position."""

    token: str = Field(
        description="The token's text. A token that is only part of a character is written byte by byte as `\\xNN`."
    )
    logprob: float = Field(
        description="Natural logarithm of the probability under the steered model, before temperature; at least -9999."
    )
    bytes: list[int] = Field(description="The token's bytes.")


class TokenLogprob(TopLogprob):
    """A generated token with its log-probability."""

    top_logprobs: list[TopLogprob] = Field(description="The likeliest tokens at this position, likeliest first.")


class ChoiceLogprobs(ResponseModel):
    """Log-probabilities of the tokens of a choice, or of a chunk of one."""

    content: list[TokenLogprob] | None = Field(description="One entry for each token.")
    refusal: None = Field(default=None, description="Always null.")


class AssistantMessage(ResponseModel):
    """The generated message."""

    role: Literal["assistant"] = Field(default="assistant", description="Always `assistant`.")
    content: str = Field(description="The generated text.")
    refusal: None = Field(default=None, description="Always null.")


class ChatChoice(ResponseModel):
    """One generated answer."""

    index: int = Field(description="Index of the choice, from 0 to n - 1.")
    message: AssistantMessage = Field(description="The message of this choice.")
    logprobs: ChoiceLogprobs | None = Field(
        description="Log-probabilities of the generated tokens; null unless `logprobs` was set."
    )
    finish_reason: Literal["stop", "length"] = Field(
        description="`stop`: the model or a stop string ended the text. `length`: the token limit ended it."
    )
    stop_reason: str | int | None = absent_if_none("The stop string or stop token that ended the text.")
    features: list[WatchedToken] | None = features_field()
    prompt_features: list[WatchedToken] | None = prompt_features_field()
    steering: dict[str, Any] | None = absent_if_none("Receipt of this choice; only if n > 1.")


class ChatCompletion(ResponseModel):
    """The answer to a chat request that is not streamed."""

    id: str = Field(description="Id of the answer; starts with `chatcmpl-`.")
    object: Literal["chat.completion"] = Field(default="chat.completion", description="Always `chat.completion`.")
    created: int = Field(description="Unix time in seconds.")
    model: str = Field(description="The model as the request named it.")
    choices: list[ChatChoice] = Field(description="The choices, in order of `index`.")
    usage: Usage = Field(description="Numbers of tokens read and generated.")
    system_fingerprint: str = Field(description="Equal for equal model, server and steering.")
    service_tier: Literal["default"] | None = absent_if_none("Always `default`; only if the request named a tier.")
    metadata: dict[str, str] | None = absent_if_none("The request's `metadata`.")
    steering: dict[str, Any] | None = absent_if_none(
        "Receipt: the edits that were applied (to choice 0 if n > 1). Absent without steering."
    )


class Delta(ResponseModel):
    """The part of a message that a chunk adds."""

    role: Literal["assistant"] | None = absent_if_none("Always `assistant`; only in the first chunk of a choice.")
    content: str | None = absent_if_none("New text. Characters are always whole.")


class ChatChunkChoice(ResponseModel):
    """The part of a choice that a chunk adds."""

    index: int = Field(description="Index of the choice, from 0 to n - 1.")
    delta: Delta = Field(description="The new part of the message; empty in the last chunk of the choice.")
    logprobs: ChoiceLogprobs | None = Field(
        default=None, description="Log-probabilities of the chunk's tokens; null unless `logprobs` was set."
    )
    finish_reason: Literal["stop", "length"] | None = Field(
        default=None, description="Why the text ended; only in the last chunk of the choice."
    )
    stop_reason: str | int | None = absent_if_none("The stop string or stop token that ended the text.")
    features: list[WatchedToken] | None = features_field()
    steering: dict[str, Any] | None = absent_if_none("Receipt of this choice; only if n > 1.")


class ChatChunk(ResponseModel):
    """One event of a streamed answer."""

    id: str = Field(description="Id of the answer, equal in all chunks; starts with `chatcmpl-`.")
    object: Literal["chat.completion.chunk"] = Field(
        default="chat.completion.chunk", description="Always `chat.completion.chunk`."
    )
    created: int = Field(description="Unix time in seconds, equal in all chunks.")
    model: str = Field(description="The model as the request named it.")
    choices: list[ChatChunkChoice] = Field(description="One choice; none in the chunk with the usage.")
    system_fingerprint: str = Field(description="Equal for equal model, server and steering.")
    service_tier: Literal["default"] | None = absent_if_none("Always `default`; only if the request named a tier.")
    steering: dict[str, Any] | None = absent_if_none(
        "Receipt of the choice: the edits that were applied. Only in the chunk with its `finish_reason`; absent "
        "without steering."
    )


class ChatUsageChunk(ChatChunk):
    """A chunk of a stream with `stream_options.include_usage`."""

    usage: Usage | None = Field(
        default=None,
        description="Numbers of tokens; null in all chunks but the last, unless `continuous_usage_stats` is set.",
    )
