"""`POST /v1/compare`: arms that run in one batch with common noise."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from steerserve.requests.answers.comparison import ComparisonWriter
from steerserve.requests.comparison import prepare_comparison
from steerserve.requests.comparison_running import ComparisonGeneration
from steerserve.server.body import json_body
from steerserve.server.dependencies import MetricsDep, RuntimeDep, summary_of
from steerserve.server.disconnect import unless_disconnected
from steerserve.server.keys import require_inference
from steerserve.server.openapi import GENERATION_ERRORS, error_responses, request_body, text_response
from steerserve.server.serving import observe_request, stream_events
from steerserve.server.sse import named_event_bytes
from steerserve.wire.compare import Comparison, ComparisonRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import BaseModel

_STREAM = (
    "Named events, then `data: [DONE]`: `arm.delta` with an ArmDelta, `arm.done` with an ArmDone, `comparison.done` "
    "with the Comparison, or `error` with an error object."
)

router = APIRouter(tags=["Comparing"], dependencies=[Depends(require_inference)])


@router.post(
    "/v1/compare",
    response_model=Comparison,
    responses=text_response("text/event-stream", _STREAM) | error_responses(*GENERATION_ERRORS),
    openapi_extra=request_body(ComparisonRequest),
)
async def compare_arms(
    request: Request,
    body: Annotated[ComparisonRequest, Depends(json_body(ComparisonRequest))],
    runtime: RuntimeDep,
    metrics: MetricsDep,
) -> Response:
    """Continue a conversation in several arms that differ only in their steering, and measure each sample."""
    prepared = await prepare_comparison(runtime, body)
    streams = runtime.submit(prepared.requests)
    observer = observe_request(prepared, metrics, summary_of(request))
    generation = ComparisonGeneration(
        runtime, prepared, streams, observer, with_metrics=body.metrics, by_token=body.by_token
    )
    writer = ComparisonWriter(runtime, body, prepared, generation)
    if body.stream:
        events = writer.events(runtime.comparisons, _events_bytes)
        return await stream_events(
            request, runtime, generation, events, lambda error: named_event_bytes("error", error)
        )
    with generation:
        await unless_disconnected(request, writer.write_samples())
    # A whole comparison takes a while to write; in a thread it does not delay other streams.
    written = await asyncio.to_thread(lambda: writer.kept(runtime.comparisons).model_dump_json())
    return Response(written, media_type="application/json")


def _events_bytes(events: Sequence[tuple[str, BaseModel]]) -> bytes:
    return b"".join(named_event_bytes(name, body) for name, body in events)
