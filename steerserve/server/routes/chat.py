"""`POST /v1/chat/completions`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Literal

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from steerserve.requests.generation import prepare_chat
from steerserve.requests.watching import FeatureWriter, is_long
from steerserve.server.answers.logprobs import chat_logprobs
from steerserve.server.body import json_body
from steerserve.server.dependencies import MetricsDep, RuntimeDep, summary_of
from steerserve.server.keys import require_inference
from steerserve.server.openapi import request_body, stream_response
from steerserve.server.serving import start_generation, stream_results, usage_of, whole_results
from steerserve.server.sse import event_bytes
from steerserve.wire.chat import (
    AssistantMessage,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionRequest,
    ChatUsageChunk,
    Delta,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from steerserve.engine.request import TokenEvent
    from steerserve.requests.generation import Prepared
    from steerserve.requests.running import Generation
    from steerserve.runtime import Runtime
    from steerserve.wire.usage import Usage
    from steerserve.wire.watching import WatchedToken

router = APIRouter(tags=["OpenAI"], dependencies=[Depends(require_inference)])


@router.post(
    "/v1/chat/completions",
    response_model=ChatCompletion,
    responses=stream_response(ChatChunk),
    openapi_extra=request_body(ChatCompletionRequest),
)
async def create_chat_completion(
    request: Request,
    body: Annotated[ChatCompletionRequest, Depends(json_body(ChatCompletionRequest))],
    runtime: RuntimeDep,
    metrics: MetricsDep,
) -> Response:
    """Continue a conversation, steered by the edits in `steering`."""
    prepared = await prepare_chat(runtime, body)
    generation = start_generation(runtime, prepared, metrics, summary_of(request))
    writer = ChatWriter(body, prepared, generation, runtime)
    if body.stream:
        return await stream_results(request, runtime, generation, writer.chunks)
    events = await whole_results(request, generation)
    # What is watched over a long text takes a while to write.
    written = await asyncio.to_thread(writer.written, events) if body.features is not None else writer.written(events)
    return Response(written, media_type="application/json")


class ChatWriter:
    """Writes what was generated as OpenAI's objects."""

    def __init__(
        self, body: ChatCompletionRequest, prepared: Prepared, generation: Generation, runtime: Runtime
    ) -> None:
        """Write the answer to `body`."""
        self._body = body
        self._prepared = prepared
        self._generation = generation
        self._tokenizer = runtime.tokenizer
        self._label_of = runtime.stores.label
        self._features = FeatureWriter(runtime, prepared.watch)
        self._has_roles = False
        self._service_tier: Literal["default"] | None = "default" if body.service_tier is not None else None

    def written(self, events: list[TokenEvent]) -> str:
        """Write the whole answer as JSON."""
        return self.completion(events).model_dump_json()

    def completion(self, events: list[TokenEvent]) -> ChatCompletion:
        """Write the whole answer, of one event for each choice."""
        return ChatCompletion(
            id=self._prepared.id,
            created=self._prepared.created,
            model=self._prepared.model,
            choices=[self._choice(index, event) for index, event in enumerate(events)],
            usage=usage_of(self._prepared, self._generation),
            system_fingerprint=self._prepared.system_fingerprint,
            service_tier=self._service_tier,
            metadata=self._body.metadata,
            steering=self._receipt(events[0]),
        )

    async def chunks(self) -> AsyncIterator[bytes]:
        """Write events as chunks: roles first, then what comes, then the usage where it was asked for."""
        async for delta in self._generation.deltas():
            is_slow = is_long(part for _, event in delta for part in (event.prompt_features, event.features))
            events = await asyncio.to_thread(self._delta_bytes, delta) if is_slow else self._delta_bytes(delta)
            if events:
                yield events
        if self._body.include_usage:
            usage = usage_of(self._prepared, self._generation)
            yield event_bytes(self._chunk(None, usage=usage))

    def _delta_bytes(self, delta: Sequence[tuple[int, TokenEvent]]) -> bytes:
        """Write what came; a choice's prompt goes into its first chunk, that of the role where it is there in time."""
        chunks: list[ChatChunk] = []
        prompts = {
            index: self._features.entries(event.prompt_features)
            for index, event in delta
            if event.prompt_features is not None
        }
        if not self._has_roles:
            self._has_roles = True
            chunks += self._role_chunks(prompts)
            prompts = {}
        for index, event in delta:
            if index in prompts:
                choice = ChatChunkChoice(index=index, delta=Delta(content=""), features=prompts[index])
                chunks.append(self._chunk(choice))
            chunks += self._event_chunks(index, event)
        return b"".join(event_bytes(chunk) for chunk in chunks)

    def _role_chunks(self, prompts: dict[int, list[WatchedToken]]) -> Iterator[ChatChunk]:
        for index in range(self._generation.num_choices):
            delta = Delta(role="assistant", content="")
            yield self._chunk(ChatChunkChoice(index=index, delta=delta, features=prompts.get(index)))

    def _event_chunks(self, index: int, event: TokenEvent) -> Iterator[ChatChunk]:
        logprobs = chat_logprobs(event.logprobs, self._tokenizer) if event.logprobs else None
        features = self._features.entries(event.features) if event.features else None
        if event.text or logprobs is not None or features is not None:
            delta = Delta(content=event.text)
            yield self._chunk(ChatChunkChoice(index=index, delta=delta, logprobs=logprobs, features=features))
        if event.finish_reason is not None:
            receipt = self._receipt(event)
            choice = ChatChunkChoice(
                index=index,
                delta=Delta(),
                finish_reason=event.finish_reason,
                stop_reason=event.stop_reason,
                steering=receipt if self._body.n > 1 else None,
            )
            yield self._chunk(choice, steering=receipt)

    def _chunk(
        self,
        choice: ChatChunkChoice | None,
        *,
        steering: dict[str, object] | None = None,
        usage: Usage | None = None,
    ) -> ChatChunk:
        if self._body.continuous_usage and usage is None:
            usage = usage_of(self._prepared, self._generation)
        chunk = ChatChunk(
            id=self._prepared.id,
            created=self._prepared.created,
            model=self._prepared.model,
            choices=[choice] if choice is not None else [],
            system_fingerprint=self._prepared.system_fingerprint,
            service_tier=self._service_tier,
            steering=steering,
        )
        return ChatUsageChunk(**dict(chunk), usage=usage) if self._body.include_usage else chunk

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

    def _receipt(self, event: TokenEvent) -> dict[str, object] | None:
        return event.receipt.as_json(self._label_of) if event.receipt is not None else None
