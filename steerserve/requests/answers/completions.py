"""Text completions, written from the events of a generation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steerserve.requests.answers.logprobs import CompletionLogprobWriter, join_completion_logprobs
from steerserve.requests.answers.writer import AnswerWriter
from steerserve.wire.completions import Completion, CompletionChoice, CompletionChunk, CompletionUsageChunk

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from steerserve.engine.request import TokenEvent
    from steerserve.requests.generation import PreparedGeneration
    from steerserve.requests.running import Generation
    from steerserve.requests.served import ServedModel
    from steerserve.wire.completions import CompletionLogprobs, CompletionRequest


class CompletionWriter(AnswerWriter[Completion, CompletionChunk]):
    """Writes the answer to a text completion request."""

    _chunk_type = CompletionChunk
    _usage_chunk_type = CompletionUsageChunk

    def __init__(
        self, body: CompletionRequest, served: ServedModel, prepared: PreparedGeneration, generation: Generation
    ) -> None:
        """Write the answer to `body`."""
        super().__init__(body, served, prepared, generation)
        self._body = body
        self._logprobs = [CompletionLogprobWriter(served.tokenizer) for _ in prepared.requests]
        self._has_echoed = [not body.echo] * len(prepared.requests)

    def whole(self, events: Sequence[TokenEvent]) -> Completion:
        """Write the whole answer, given one event for each choice."""
        return Completion(
            **self._fields(),
            choices=[self._choice(index, event) for index, event in enumerate(events)],
            usage=self.usage(),
            steering=self._receipt(events[0]),
        )

    def _delta_chunks(self, delta: Sequence[tuple[int, TokenEvent]]) -> Iterator[CompletionChunk]:
        for index, event in delta:
            yield from self._event_chunks(index, event)

    def _event_chunks(self, index: int, event: TokenEvent) -> Iterator[CompletionChunk]:
        if (prompt := self._features.of_prompt(event)) is not None:
            yield self._chunk([CompletionChoice(index=index, text="", features=prompt)])
        text, logprobs = self._text_and_logprobs(index, event)
        features = self._features.entries(event.features) if event.features else None
        if text or logprobs is not None or features is not None:
            yield self._chunk([CompletionChoice(index=index, text=text, logprobs=logprobs, features=features)])
        if event.finish_reason is not None:
            receipt = self._receipt(event)
            choice = CompletionChoice(
                index=index,
                text="",
                finish_reason=event.finish_reason,
                stop_reason=event.stop_reason,
                steering=receipt if self._generation.num_choices > 1 else None,
            )
            yield self._chunk([choice], steering=receipt)

    def _choice(self, index: int, event: TokenEvent) -> CompletionChoice:
        text, logprobs = self._text_and_logprobs(index, event)
        if logprobs is None and self._body.logprobs is not None:
            logprobs = join_completion_logprobs([])
        return CompletionChoice(
            index=index,
            text=text,
            logprobs=logprobs,
            finish_reason=event.finish_reason,
            stop_reason=event.stop_reason,
            features=self._features.of_choice(event),
            prompt_features=self._features.of_prompt(event),
            steering=self._receipt(event) if self._generation.num_choices > 1 else None,
        )

    def _text_and_logprobs(self, index: int, event: TokenEvent) -> tuple[str, CompletionLogprobs | None]:
        """Return an event's text and log-probabilities; with `echo` a choice's first event begins with the prompt."""
        text, parts = event.text, []
        if not self._has_echoed[index]:
            self._has_echoed[index] = True
            prompt_ids = self._prepared.requests[index].prompt_ids
            prompt = self._prompt_text(index)
            text = prompt + text
            if event.prompt_logprobs is not None:
                parts.append(self._logprobs[index].prompt(prompt_ids, event.prompt_logprobs, prompt))
        if event.logprobs:
            parts.append(self._logprobs[index].tokens(event))
        return text, join_completion_logprobs(parts) if parts else None

    def _prompt_text(self, index: int) -> str:
        prompt = self._body.prompt[index // self._prepared.num_samples]
        return prompt if isinstance(prompt, str) else self._tokenizer.decode(prompt, skip_special_tokens=False)
