"""`POST /v1/chat/completions`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from steerserve.requests.answers.chat import ChatWriter
from steerserve.requests.generation import prepare_chat
from steerserve.server.body import json_body
from steerserve.server.dependencies import MetricsDep, RuntimeDep, summary_of
from steerserve.server.keys import require_inference
from steerserve.server.openapi import request_body, stream_response
from steerserve.server.serving import start_generation, stream_answer, whole_answer
from steerserve.wire.chat import ChatChunk, ChatCompletion, ChatCompletionRequest

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
    writer = ChatWriter(body, runtime, prepared, generation)
    if body.stream:
        return await stream_answer(request, runtime, generation, writer)
    return await whole_answer(request, generation, writer, in_thread=body.features is not None)
