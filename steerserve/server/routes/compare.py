"""`POST /v1/compare`: arms side by side, in one batch and with common noise."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from steerserve.core.errors import EngineError, SteerserveError
from steerserve.requests.answers.comparison import ComparisonWriter
from steerserve.requests.comparison import prepare_comparison
from steerserve.requests.comparison_running import ComparisonGeneration, TextDelta
from steerserve.requests.watching import is_long
from steerserve.server.body import json_body
from steerserve.server.dependencies import MetricsDep, RuntimeDep, summary_of
from steerserve.server.disconnect import unless_disconnected
from steerserve.server.errors import error_body
from steerserve.server.keys import require_inference
from steerserve.server.metrics import RequestObserver
from steerserve.server.openapi import reading_responses, request_body
from steerserve.server.sse import DONE, GenerationStream, event_bytes
from steerserve.wire.compare import Comparison, ComparisonRequest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from pydantic import BaseModel

    from steerserve.requests.comparison import PreparedComparison
    from steerserve.requests.comparison_running import ArmSample
    from steerserve.runtime import Runtime
    from steerserve.server.metrics import Metrics

logger = logging.getLogger(__name__)

_STREAM = (
    "Named events, then `data: [DONE]`: `arm.delta` with an ArmDelta, `arm.done` with an ArmDone, `comparison.done` "
    "with the Comparison, or `error` with an error object."
)
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string", "description": _STREAM}}}},
    **reading_responses(),
}

router = APIRouter(tags=["Comparing"], dependencies=[Depends(require_inference)])


@router.post(
    "/v1/compare", response_model=Comparison, responses=_RESPONSES, openapi_extra=request_body(ComparisonRequest)
)
async def compare_arms(
    request: Request,
    body: Annotated[ComparisonRequest, Depends(json_body(ComparisonRequest))],
    runtime: RuntimeDep,
    metrics: MetricsDep,
) -> Response:
    """Continue a conversation in several ways that differ by their steering alone, and measure each."""
    prepared = await prepare_comparison(runtime, body)
    generation = _start(request, body, runtime, prepared, metrics)
    writer = ComparisonWriter(runtime, body, prepared, generation)
    if body.stream:
        return await _streamed(request, runtime, generation, writer)
    with generation:
        await unless_disconnected(request, _write_all(generation, writer))
    # A whole comparison takes a while to write, and others' streams go on meanwhile.
    whole = await asyncio.to_thread(lambda: writer.kept(runtime.comparisons).model_dump_json())
    return Response(whole, media_type="application/json")


def _start(
    request: Request, body: ComparisonRequest, runtime: Runtime, prepared: PreparedComparison, metrics: Metrics
) -> ComparisonGeneration:
    """Hand all samples of all arms to the engine, or none."""
    streams, summary = runtime.submit(prepared.requests), summary_of(request)
    summary.generation_id = prepared.id
    summary.num_prompt_tokens = sum(len(arm.prompt_ids) for arm in prepared.arms)
    summary.num_edits = prepared.num_edits
    if prepared.num_edits:
        metrics.count_steered()
    return ComparisonGeneration(
        runtime, prepared, streams, RequestObserver(metrics, summary), with_metrics=body.metrics, by_token=body.by_token
    )


async def _write_all(generation: ComparisonGeneration, writer: ComparisonWriter) -> None:
    async for happened in generation.updates():
        if samples := [one for one in happened if not isinstance(one, TextDelta)]:
            await asyncio.to_thread(lambda samples: [writer.done(sample) for sample in samples], samples)


async def _streamed(
    request: Request,
    runtime: Runtime,
    generation: ComparisonGeneration,
    writer: ComparisonWriter,
) -> GenerationStream:
    """Answer with a stream once there is something to send, so that what fails before has a status."""
    settings = runtime.settings.server
    try:
        await unless_disconnected(request, generation.wait_for_first(settings.keep_alive_s))
    except BaseException:
        generation.close()
        raise
    events = _with_end(_events(runtime, generation, writer))
    return GenerationStream(events, generation, keep_alive_s=settings.keep_alive_s, drain_s=settings.drain_s)


async def _events(runtime: Runtime, generation: ComparisonGeneration, writer: ComparisonWriter) -> AsyncIterator[bytes]:
    async for happened in generation.updates():
        is_slow = is_long(one.features if isinstance(one, TextDelta) else None for one in happened)
        if is_slow or any(not isinstance(one, TextDelta) for one in happened):
            yield await asyncio.to_thread(_events_bytes, writer, happened)
        else:
            yield _events_bytes(writer, happened)
    yield await asyncio.to_thread(lambda: _named("comparison.done", writer.kept(runtime.comparisons)))


def _events_bytes(writer: ComparisonWriter, happened: Sequence[TextDelta | ArmSample]) -> bytes:
    return b"".join(
        _named("arm.delta", writer.delta(one)) if isinstance(one, TextDelta) else _named("arm.done", writer.done(one))
        for one in happened
    )


async def _with_end(events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Add the error, where there is one, and the end mark."""
    try:
        async for event in events:
            yield event
    except SteerserveError as error:
        yield _named("error", error_body(error))
    except Exception:
        logger.exception("a comparison failed")
        failure = EngineError("The server failed to finish this comparison. Its log says more.")
        yield _named("error", error_body(failure))
    yield DONE


def _named(name: str, body: BaseModel) -> bytes:
    return b"event: " + name.encode() + b"\n" + event_bytes(body)
