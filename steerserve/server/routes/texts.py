"""`/v1/features/inspect` and `/v1/features/contrast`: features that texts activate, and features that separate them."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from steerserve.requests.contrast import contrast
from steerserve.requests.inspection import inspect
from steerserve.server.body import json_body
from steerserve.server.dependencies import RuntimeDep
from steerserve.server.disconnect import unless_disconnected
from steerserve.server.keys import require_inference
from steerserve.server.openapi import GENERATION_ERRORS, error_responses, request_body
from steerserve.wire.texts import ContrastObject, ContrastRequest, InspectionObject, InspectRequest

router = APIRouter(tags=["Features"], dependencies=[Depends(require_inference)])


@router.post(
    "/v1/features/inspect",
    response_model=InspectionObject,
    responses=error_responses(*GENERATION_ERRORS),
    openapi_extra=request_body(InspectRequest),
)
async def inspect_text(
    request: Request, body: Annotated[InspectRequest, Depends(json_body(InspectRequest))], runtime: RuntimeDep
) -> Response:
    """Return the features that a text or a conversation activates, at every token and over the whole text."""
    inspection = await unless_disconnected(request, inspect(runtime, body))
    return Response(await asyncio.to_thread(inspection.model_dump_json), media_type="application/json")


@router.post(
    "/v1/features/contrast",
    response_model=ContrastObject,
    responses=error_responses(*GENERATION_ERRORS),
    openapi_extra=request_body(ContrastRequest),
)
async def contrast_texts(
    request: Request, body: Annotated[ContrastRequest, Depends(json_body(ContrastRequest))], runtime: RuntimeDep
) -> ContrastObject:
    """Return the features that separate two sets of texts, tested against chance, and edits towards the first set."""
    return await unless_disconnected(request, contrast(runtime, body))
