"""`POST /v1/features/contrast`: the features that separate two sets of texts."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request

from steerserve.requests.contrast import contrast
from steerserve.server.body import json_body
from steerserve.server.dependencies import RuntimeDep
from steerserve.server.disconnect import unless_disconnected
from steerserve.server.keys import require_inference
from steerserve.server.openapi import GENERATION_ERRORS, error_responses, request_body
from steerserve.wire.texts import ContrastObject, ContrastRequest

router = APIRouter(tags=["Features"], dependencies=[Depends(require_inference)])


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
