"""`POST /v1/completions`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from steerserve.requests.generation import prepare_completion
from steerserve.requests.watching import FeatureWriter, is_long
from steerserve.server.answers.logprobs import CompletionLogprobWriter, join_completion_logprobs
from steerserve.server.body import json_body
from steerserve.server.dependencies import MetricsDep, RuntimeDep, summary_of
from steerserve.server.keys import require_inference
from steerserve.server.openapi import request_body, stream_response
from steerserve.server.serving import start_generation, stream_results, usage_of, whole_results
from steerserve.server.sse import event_bytes
from steerserve.wire.completions import (
    Completion,
    CompletionChoice,
    CompletionChunk,
    CompletionLogprobs,
    CompletionRequest,
    CompletionUsageChunk,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from steerserve.engine.request import TokenEvent
    from steerserve.requests.generation import Prepared
    from steerserve.requests.running import Generation
    from steerserve.runtime import Runtime
    from steerserve.wire.usage import Usage

router = APIRouter(tags=["OpenAI"], dependencies=[Depends(require_inference)])


@router.post(
    "/v1/completions",
    response_model=Completion,
    responses=stream_response(CompletionChunk),
    openapi_extra=request_body(CompletionRequest),
)
async def create_completion(
    request: Request,
    body: Annotated[CompletionRequest, Depends(json_body(CompletionRequest))],
    runtime: RuntimeDep,
    metrics: MetricsDep,
) -> Response:
    """Continue raw prompts, steered by the edits in `steering`."""
    prepared = await prepare_completion(runtime, body)
    generation = start_generation(runtime, prepared, metrics, summary_of(request))
    writer = CompletionWriter(body, prepared, generation, runtime)
    if body.stream:
        return await stream_results(request, runtime, generation, writer.chunks)
    events = await whole_results(request, generation)
    # What is watched over a long text takes a while to write.
    written = await asyncio.to_thread(writer.written, events) if body.features is not None else writer.written(events)
    return Response(written, media_type="application/json")


class CompletionWriter:
    """Writes what was generated as OpenAI's objects."""

    def __init__(self, body: CompletionRequest, prepared: Prepared, generation: Generation, runtime: Runtime) -> None:
        """Write the answer to `body`."""
        self._body = body
        self._prepared = prepared
        self._generation = generation
        self._tokenizer = runtime.tokenizer
        self._label_of = runtime.stores.label
        self._features = FeatureWriter(runtime, prepared.watch)
        self._logprobs = [CompletionLogprobWriter(runtime.tokenizer) for _ in prepared.requests]
        self._has_echoed = [not body.echo] * len(prepared.requests)

    def written(self, events: list[TokenEvent]) -> str:
        """Write the whole answer as JSON."""
        return self.completion(events).model_dump_json()

    def completion(self, events: list[TokenEvent]) -> Completion:
        """Write the whole answer, of one event for each choice."""
        return Completion(
            id=self._prepared.id,
            created=self._prepared.created,
            model=self._prepared.model,
            choices=[self._choice(index, event) for index, event in enumerate(events)],
            usage=usage_of(self._prepared, self._generation),
            system_fingerprint=self._prepared.system_fingerprint,
            steering=self._receipt(events[0]),
        )

    async def chunks(self) -> AsyncIterator[bytes]:
        """Write events as chunks, then the usage where it was asked for."""
        async for delta in self._generation.deltas():
            is_slow = is_long(part for _, event in delta for part in (event.prompt_features, event.features))
            events = await asyncio.to_thread(self._delta_bytes, delta) if is_slow else self._delta_bytes(delta)
            if events:
                yield events
        if self._body.include_usage:
            yield event_bytes(self._chunk(None, usage=usage_of(self._prepared, self._generation)))

    def _delta_bytes(self, delta: Sequence[tuple[int, TokenEvent]]) -> bytes:
        return b"".join(event_bytes(chunk) for index, event in delta for chunk in self._event_chunks(index, event))

    def _event_chunks(self, index: int, event: TokenEvent) -> Iterator[CompletionChunk]:
        if (prompt := self._features.of_prompt(event)) is not None:
            yield self._chunk(CompletionChoice(index=index, text="", features=prompt))
        text, logprobs = self._text_and_logprobs(index, event)
        features = self._features.entries(event.features) if event.features else None
        if text or logprobs is not None or features is not None:
            yield self._chunk(CompletionChoice(index=index, text=text, logprobs=logprobs, features=features))
        if event.finish_reason is not None:
            receipt = self._receipt(event)
            choice = CompletionChoice(
                index=index,
                text="",
                finish_reason=event.finish_reason,
                stop_reason=event.stop_reason,
                steering=receipt if self._generation.num_choices > 1 else None,
            )
            yield self._chunk(choice, steering=receipt)

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
        """Give an event's text and tokens, the prompt's before a choice's first where it is echoed."""
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
        place = index // self._prepared.num_samples
        prompt = self._body.prompt[place]
        return prompt if isinstance(prompt, str) else self._tokenizer.decode(prompt, skip_special_tokens=False)

    def _chunk(
        self,
        choice: CompletionChoice | None,
        *,
        steering: dict[str, object] | None = None,
        usage: Usage | None = None,
    ) -> CompletionChunk:
        if self._body.continuous_usage and usage is None:
            usage = usage_of(self._prepared, self._generation)
        chunk = CompletionChunk(
            id=self._prepared.id,
            created=self._prepared.created,
            model=self._prepared.model,
            choices=[choice] if choice is not None else [],
            system_fingerprint=self._prepared.system_fingerprint,
            steering=steering,
        )
        return CompletionUsageChunk(**dict(chunk), usage=usage) if self._body.include_usage else chunk

    def _receipt(self, event: TokenEvent) -> dict[str, object] | None:
        return event.receipt.as_json(self._label_of) if event.receipt is not None else None
