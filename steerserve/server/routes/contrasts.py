"""`POST /v1/features/contrast`: the features that tell two sets of texts apart."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request

from steerserve.requests.contrast import contrast
from steerserve.server.body import json_body
from steerserve.server.dependencies import RuntimeDep
from steerserve.server.disconnect import unless_disconnected
from steerserve.server.keys import require_inference
from steerserve.server.openapi import reading_responses, request_body
from steerserve.wire.texts import ContrastObject, ContrastRequest

router = APIRouter(tags=["Features"], dependencies=[Depends(require_inference)])


@router.post(
    "/v1/features/contrast",
    response_model=ContrastObject,
    responses=reading_responses(),
    openapi_extra=request_body(ContrastRequest),
)
async def contrast_texts(
    request: Request, body: Annotated[ContrastRequest, Depends(json_body(ContrastRequest))], runtime: RuntimeDep
) -> ContrastObject:
    """Give the features that tell two sets of texts apart, held against chance, and edits that lead to the first."""
    return await unless_disconnected(request, contrast(runtime, body))
