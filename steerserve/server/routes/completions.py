"""`POST /v1/completions`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from steerserve.requests.answers.completions import CompletionWriter
from steerserve.requests.generation import prepare_completion
from steerserve.server.body import json_body
from steerserve.server.dependencies import MetricsDep, RuntimeDep, summary_of
from steerserve.server.keys import require_inference
from steerserve.server.openapi import request_body, stream_response
from steerserve.server.serving import start_generation, stream_answer, whole_answer
from steerserve.wire.completions import Completion, CompletionChunk, CompletionRequest

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
    writer = CompletionWriter(body, runtime, prepared, generation)
    if body.stream:
        return await stream_answer(request, runtime, generation, writer)
    return await whole_answer(request, generation, writer, in_thread=body.features is not None)
