"""`/v1/comparisons`: the kept comparisons."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query
from starlette.responses import Response

from steerserve.server.dependencies import RuntimeDep
from steerserve.server.keys import require_admin, require_inference
from steerserve.server.openapi import text_response
from steerserve.wire.compare import Comparison, ComparisonList, DeletedComparison, KeptComparison

ComparisonId = Annotated[str, Path(description="Id of the comparison, as `/v1/comparisons` lists it.", max_length=200)]
_MAX_LISTED = 100
_LARGEST_OFFSET = 1 << 31
_NDJSON = "application/x-ndjson"

router = APIRouter(tags=["Comparing"], dependencies=[Depends(require_inference)])


@router.get("/v1/comparisons")
async def list_comparisons(
    runtime: RuntimeDep,
    limit: Annotated[int, Query(ge=1, le=_MAX_LISTED, description="Largest number of comparisons to return.")] = 20,
    offset: Annotated[
        int, Query(ge=0, le=_LARGEST_OFFSET, description="Number of newest comparisons to leave out.")
    ] = 0,
) -> ComparisonList:
    """List the kept comparisons, the newest first."""
    page = await asyncio.to_thread(runtime.comparisons.page, limit=limit, offset=offset)
    return ComparisonList(data=[KeptComparison(**summary) for summary in page.summaries], has_more=page.has_more)


@router.get("/v1/comparisons/{comparison_id}", response_model=Comparison)
async def get_comparison(comparison_id: ComparisonId, runtime: RuntimeDep) -> Response:
    """Return a comparison as it was answered, with its request."""
    return Response(await asyncio.to_thread(runtime.comparisons.find, comparison_id), media_type="application/json")


@router.get(
    "/v1/comparisons/{comparison_id}/export",
    response_class=Response,
    responses=text_response(_NDJSON, "One line of JSON for each sample."),
)
async def export_comparison(comparison_id: ComparisonId, runtime: RuntimeDep) -> Response:
    """Return every sample as a line of JSON, with the comparison's id, seed and model and the arm's name."""
    lines = await asyncio.to_thread(lambda: _lines(runtime.comparisons.find(comparison_id)))
    headers = {"content-disposition": f'attachment; filename="{_file_name(comparison_id)}.jsonl"'}
    return Response(lines, headers=headers, media_type=_NDJSON)


@router.delete("/v1/comparisons/{comparison_id}", dependencies=[Depends(require_admin)])
async def delete_comparison(comparison_id: ComparisonId, runtime: RuntimeDep) -> DeletedComparison:
    """Delete a kept comparison."""
    await asyncio.to_thread(runtime.comparisons.delete, comparison_id)
    return DeletedComparison(id=comparison_id)


def _lines(content: str) -> str:
    whole = json.loads(content)
    shared = {"comparison": whole["id"], **{key: whole[key] for key in ("created", "model", "seed")}}
    records = (
        {**shared, "arm": arm["name"], "control_of": arm.get("control_of"), **sample}
        for arm in whole["arms"]
        for sample in arm["samples"]
    )
    return "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records)


def _file_name(comparison_id: str) -> str:
    return "".join(char for char in comparison_id if char.isascii() and (char.isalnum() or char == "-"))
