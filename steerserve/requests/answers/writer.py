"""The common base of the writers of chat and text completions: an answer is written whole, or as chunks."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from steerserve.requests.watching import FeatureWriter, is_long
from steerserve.wire.generation import PromptTokensDetails, Usage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from pydantic import BaseModel

    from steerserve.engine.request import TokenEvent
    from steerserve.requests.generation import PreparedGeneration
    from steerserve.requests.running import Generation
    from steerserve.requests.served import ServedModel
    from steerserve.wire.generation import GenerationFields

Whole = TypeVar("Whole", bound="BaseModel")
Chunk = TypeVar("Chunk", bound="BaseModel")
Written = TypeVar("Written")


class AnswerWriter(Generic[Whole, Chunk]):
    """Writes the events of a generation as OpenAI's objects."""

    _chunk_type: type[Chunk]
    _usage_chunk_type: type[Chunk]
    """Type of the chunks of a stream with `stream_options.include_usage`."""

    def __init__(
        self, fields: GenerationFields, served: ServedModel, prepared: PreparedGeneration, generation: Generation
    ) -> None:
        """Write the answer to the request that has `fields` and was prepared as `prepared`."""
        self._options = fields
        self._prepared = prepared
        self._generation = generation
        self._tokenizer = served.tokenizer
        self._label_of = served.stores.label
        self._features = FeatureWriter(served, prepared.watch)

    def whole(self, events: Sequence[TokenEvent]) -> Whole:
        """Write the whole answer, given one event for each choice."""
        raise NotImplementedError

    async def chunks(self, write: Callable[[Sequence[Chunk]], Written]) -> AsyncIterator[Written]:
        """Yield `write` of the chunks that become ready together, then of the usage chunk if the request asks for it.

        `write` runs in a thread if the chunks hold many activations, so that other streams go on meanwhile.
        """
        async for delta in self._generation.deltas():
            is_slow = is_long(part for _, event in delta for part in (event.prompt_features, event.features))
            written = await asyncio.to_thread(self._write, delta, write) if is_slow else self._write(delta, write)
            if written is not None:
                yield written
        if self._options.include_usage:
            yield write([self._chunk([], usage=self.usage())])

    def usage(self) -> Usage:
        """Count the tokens so far; a prompt counts once, by its first sample."""
        num_prompt, num_generated = self._prepared.num_prompt_tokens, self._generation.num_generated_tokens
        num_cached = sum(self._generation.num_cached_tokens[:: self._prepared.num_samples])
        return Usage(
            prompt_tokens=num_prompt,
            completion_tokens=num_generated,
            total_tokens=num_prompt + num_generated,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=num_cached),
        )

    def _write(
        self, delta: Sequence[tuple[int, TokenEvent]], write: Callable[[Sequence[Chunk]], Written]
    ) -> Written | None:
        chunks = list(self._delta_chunks(delta))
        return write(chunks) if chunks else None

    def _delta_chunks(self, delta: Sequence[tuple[int, TokenEvent]]) -> Iterator[Chunk]:
        raise NotImplementedError

    def _chunk(
        self, choices: Sequence[BaseModel], *, steering: dict[str, Any] | None = None, usage: Usage | None = None
    ) -> Chunk:
        """Write a chunk; its `usage` is that of the generation so far if the request asks for it in every chunk."""
        fields = {**self._fields(), "choices": choices, "steering": steering}
        if not self._options.include_usage:
            return self._chunk_type(**fields)
        usage = self.usage() if usage is None and self._options.continuous_usage else usage
        return self._usage_chunk_type(**fields, usage=usage)

    def _fields(self) -> dict[str, Any]:
        """Return the fields that a whole answer and all chunks have in common."""
        return {
            "id": self._prepared.id,
            "created": self._prepared.created,
            "model": self._prepared.model,
            "system_fingerprint": self._prepared.system_fingerprint,
        }

    def _receipt(self, event: TokenEvent) -> dict[str, Any] | None:
        return event.receipt.as_json(self._label_of) if event.receipt is not None else None
