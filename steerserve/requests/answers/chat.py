"""Chat completions, written from the events of a generation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from steerserve.requests.answers.logprobs import chat_logprobs
from steerserve.requests.answers.writer import AnswerWriter
from steerserve.wire.chat import (
    AssistantMessage,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatUsageChunk,
    Delta,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from steerserve.engine.request import TokenEvent
    from steerserve.requests.generation import PreparedGeneration
    from steerserve.requests.running import Generation
    from steerserve.requests.served import ServedModel
    from steerserve.wire.chat import ChatCompletionRequest
    from steerserve.wire.watching import WatchedToken


class ChatWriter(AnswerWriter[ChatCompletion, ChatChunk]):
    """Writes the answer to a chat request."""

    _chunk_type = ChatChunk
    _usage_chunk_type = ChatUsageChunk

    def __init__(
        self, body: ChatCompletionRequest, served: ServedModel, prepared: PreparedGeneration, generation: Generation
    ) -> None:
        """Write the answer to `body`."""
        super().__init__(body, served, prepared, generation)
        self._body = body
        self._has_roles = False

    def whole(self, events: Sequence[TokenEvent]) -> ChatCompletion:
        """Write the whole answer, given one event for each choice."""
        return ChatCompletion(
            **self._fields(),
            choices=[self._choice(index, event) for index, event in enumerate(events)],
            usage=self.usage(),
            metadata=self._body.metadata,
            steering=self._receipt(events[0]),
        )

    def _delta_chunks(self, delta: Sequence[tuple[int, TokenEvent]]) -> Iterator[ChatChunk]:
        """Write new events. A prompt's features go into the chunk with the role, unless that has been sent already."""
        prompts = {
            index: self._features.entries(event.prompt_features)
            for index, event in delta
            if event.prompt_features is not None
        }
        if not self._has_roles:
            self._has_roles = True
            yield from self._role_chunks(prompts)
            prompts = {}
        for index, event in delta:
            if index in prompts:
                yield self._chunk([ChatChunkChoice(index=index, delta=Delta(content=""), features=prompts[index])])
            yield from self._event_chunks(index, event)

    def _role_chunks(self, prompts: dict[int, list[WatchedToken]]) -> Iterator[ChatChunk]:
        for index in range(self._generation.num_choices):
            delta = Delta(role="assistant", content="")
            yield self._chunk([ChatChunkChoice(index=index, delta=delta, features=prompts.get(index))])

    def _event_chunks(self, index: int, event: TokenEvent) -> Iterator[ChatChunk]:
        logprobs = chat_logprobs(event.logprobs, self._tokenizer) if event.logprobs else None
        features = self._features.entries(event.features) if event.features else None
        if event.text or logprobs is not None or features is not None:
            delta = Delta(content=event.text)
            yield self._chunk([ChatChunkChoice(index=index, delta=delta, logprobs=logprobs, features=features)])
        if event.finish_reason is not None:
            receipt = self._receipt(event)
            choice = ChatChunkChoice(
                index=index,
                delta=Delta(),
                finish_reason=event.finish_reason,
                stop_reason=event.stop_reason,
                steering=receipt if self._body.n > 1 else None,
            )
            yield self._chunk([choice], steering=receipt)

    def _fields(self) -> dict[str, Any]:
        return super()._fields() | {"service_tier": "default" if self._body.service_tier is not None else None}

    def _choice(self, index: int, event: TokenEvent) -> ChatChoice:
        return ChatChoice(
            index=index,
            message=AssistantMessage(content=event.text),
            logprobs=chat_logprobs(event.logprobs, self._tokenizer) if self._body.logprobs else None,
            finish_reason=event.finish_reason or "stop",
            stop_reason=event.stop_reason,
            features=self._features.of_choice(event),
            prompt_features=self._features.of_prompt(event),
            steering=self._receipt(event) if self._body.n > 1 else None,
        )
