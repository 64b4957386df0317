"""`/v1/chat/completions`: the request, the answer and the chunks of a stream."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from steerserve.core.errors import InvalidRequestError, UnsupportedParameterError
from steerserve.wire.base import Identifier, ResponseModel, absent_if_none
from steerserve.wire.messages import MAX_MESSAGES, Message
from steerserve.wire.sampling import INT64_MAX, GenerationFields
from steerserve.wire.unsupported import CHAT, documented, refuse_unsupported
from steerserve.wire.usage import Usage
from steerserve.wire.watching import WatchedToken, features_field, prompt_features_field


class ChatCompletionRequest(GenerationFields):
    """A conversation to continue. Unknown fields are ignored; null means left out."""

    model_config = ConfigDict(json_schema_extra=lambda schema: schema["properties"].update(documented(CHAT)))

    messages: list[Message] = Field(
        min_length=1,
        max_length=MAX_MESSAGES,
        fail_fast=True,
        description="The conversation so far.",
        examples=[[{"role": "user", "content": "Tell me about yourself."}]],
    )
    max_completion_tokens: int | None = Field(
        default=None, ge=1, le=INT64_MAX, description="Generated tokens at most. Default: the rest of the context."
    )
    max_tokens: int | None = Field(
        default=None, ge=1, le=INT64_MAX, description="The older name; `max_completion_tokens` goes first."
    )
    logprobs: bool = Field(default=False, description="Give the log-probability of each generated token.")
    top_logprobs: int | None = Field(
        default=None, ge=0, le=20, description="With `logprobs`: how many likeliest tokens to give at each place."
    )
    add_generation_prompt: bool = Field(
        default=True, description="Let the template open an assistant's turn after the last message."
    )
    tools: list[Any] = Field(default_factory=list, description="Only empty, or with `tool_choice: none`.")
    functions: list[Any] = Field(default_factory=list, description="Only empty, or with `function_call: none`.")
    tool_choice: Any = Field(default=None, description="`none` or `auto`.")
    function_call: Any = Field(default=None, description="`none` or `auto`.")
    parallel_tool_calls: bool | None = Field(default=None, description="Says nothing, since no tool is ever called.")
    metadata: dict[Annotated[str, Field(max_length=64)], Identifier] | None = Field(
        default=None, max_length=16, description="Given back in the response; nothing is stored."
    )
    safety_identifier: Identifier | None = Field(default=None, description="For the client's own bookkeeping.")
    prompt_cache_key: Identifier | None = Field(default=None, description="A hint that is not needed here.")
    service_tier: Literal["auto", "default"] | None = Field(default=None, description="There is one tier.")

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
        """Generated tokens at most; None for the rest of the context."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens


def _refuse_callable_tools(body: dict[str, Any]) -> None:
    for field, choice in (("tools", "tool_choice"), ("functions", "function_call")):
        if body.get(field) and body.get(choice) != "none":
            message = f"'{field}' is not supported by this server yet. Leave it out, or send '{choice}': \"none\"."
            raise UnsupportedParameterError(message, param=field)


class TopLogprob(ResponseModel):
    """One of the likeliest tokens at a place."""

    token: str = Field(description="The token's text; bytes that are no character are written as `\\xNN`.")
    logprob: float = Field(
        description="Natural logarithm, under the steered model, before temperature; -9999 at least."
    )
    bytes: list[int] = Field(description="The token's bytes.")


class TokenLogprob(TopLogprob):
    """A generated token with its log-probability."""

    top_logprobs: list[TopLogprob] = Field(description="The likeliest tokens at this place, best first.")


class ChoiceLogprobs(ResponseModel):
    """The tokens of a choice, or of a chunk of one."""

    content: list[TokenLogprob] | None = Field(description="One entry for each token.")
    refusal: None = Field(default=None, description="Always null.")


class AssistantMessage(ResponseModel):
    """What the model said."""

    role: Literal["assistant"] = Field(default="assistant", description="Always `assistant`.")
    content: str = Field(description="The text.")
    refusal: None = Field(default=None, description="Always null.")


class ChatChoice(ResponseModel):
    """One answer."""

    index: int = Field(description="0 to n - 1.")
    message: AssistantMessage = Field(description="The answer.")
    logprobs: ChoiceLogprobs | None = Field(description="Where asked for.")
    finish_reason: Literal["stop", "length"] = Field(description="`length`: the token limit ended it.")
    stop_reason: str | int | None = absent_if_none("The stop string or stop token that ended it.")
    features: list[WatchedToken] | None = features_field()
    prompt_features: list[WatchedToken] | None = prompt_features_field()
    steering: dict[str, Any] | None = absent_if_none("This choice's receipt, where n > 1.")


class ChatCompletion(ResponseModel):
    """The answer to a chat request that is not streamed."""

    id: str = Field(description="Starts with `chatcmpl-`.")
    object: Literal["chat.completion"] = Field(default="chat.completion", description="Always this.")
    created: int = Field(description="Unix time in seconds.")
    model: str = Field(description="The model's id.")
    choices: list[ChatChoice] = Field(description="In order of `index`.")
    usage: Usage = Field(description="Tokens read and generated.")
    system_fingerprint: str = Field(description="The same for the same model, server and steering.")
    service_tier: Literal["default"] | None = absent_if_none("Where the request named one.")
    metadata: dict[str, str] | None = absent_if_none("The request's own.")
    steering: dict[str, Any] | None = absent_if_none(
        "What was really done (of choice 0, where n > 1); absent without steering."
    )


class Delta(ResponseModel):
    """What a chunk adds to a message."""

    role: Literal["assistant"] | None = absent_if_none("In a choice's first chunk alone.")
    content: str | None = absent_if_none("New text, never half a character.")


class ChatChunkChoice(ResponseModel):
    """What a chunk adds to one choice."""

    index: int = Field(description="0 to n - 1.")
    delta: Delta = Field(description="Empty in the choice's last chunk.")
    logprobs: ChoiceLogprobs | None = Field(default=None, description="Of the chunk's tokens, where asked for.")
    finish_reason: Literal["stop", "length"] | None = Field(default=None, description="In the last chunk alone.")
    stop_reason: str | int | None = absent_if_none("The stop string or stop token that ended it.")
    features: list[WatchedToken] | None = features_field()
    steering: dict[str, Any] | None = absent_if_none("This choice's receipt, where n > 1.")


class ChatChunk(ResponseModel):
    """One event of a streamed answer."""

    id: str = Field(description="The same in all chunks.")
    object: Literal["chat.completion.chunk"] = Field(default="chat.completion.chunk", description="Always this.")
    created: int = Field(description="The same in all chunks.")
    model: str = Field(description="The same in all chunks.")
    choices: list[ChatChunkChoice] = Field(description="One, or none in the usage chunk.")
    system_fingerprint: str = Field(description="The same for the same model, server and steering.")
    service_tier: Literal["default"] | None = absent_if_none("Where the request named one.")
    steering: dict[str, Any] | None = absent_if_none(
        "The choice's receipt, in the chunk with its finish reason; absent without steering."
    )


class ChatUsageChunk(ChatChunk):
    """A chunk of a stream with `stream_options.include_usage`."""

    usage: Usage | None = Field(default=None, description="Null but in the last chunk (unless continuous).")
