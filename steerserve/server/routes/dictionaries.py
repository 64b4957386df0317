"""`GET /v1/dictionaries`, `GET /v1/dictionaries/{id}` and the page with its report."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, Path
from starlette.responses import HTMLResponse

from steerserve.core.errors import NotFoundError
from steerserve.dictionaries.registry import unknown_dictionary_message
from steerserve.dictionaries.report_page import render_report
from steerserve.server.dependencies import RuntimeDep
from steerserve.server.keys import require_inference
from steerserve.wire.catalog import DictionaryList

if TYPE_CHECKING:
    from steerserve.dictionaries.dictionary import Dictionary
    from steerserve.runtime import Runtime

DictionaryId = Annotated[str, Path(description="Id of the dictionary, as `/v1/dictionaries` lists it.")]

router = APIRouter(tags=["Features"], dependencies=[Depends(require_inference)])


@router.get("/v1/dictionaries")
async def list_dictionaries(runtime: RuntimeDep) -> DictionaryList:
    """List the loaded dictionaries, which edits can name."""
    return await asyncio.to_thread(described_dictionaries, runtime)


@router.get("/v1/dictionaries/{dictionary_id}")
async def get_dictionary(dictionary_id: DictionaryId, runtime: RuntimeDep) -> dict[str, Any]:
    """Describe one dictionary: hook point, architecture, sizes, source, contents and training report."""
    return await asyncio.to_thread(runtime.describe, find_dictionary(runtime, dictionary_id))


@router.get("/v1/dictionaries/{dictionary_id}/report", response_class=HTMLResponse)
async def get_dictionary_report(dictionary_id: DictionaryId, runtime: RuntimeDep) -> HTMLResponse:
    """Return the dictionary's report as a page: its measurements, training curves and feature densities."""
    report = find_dictionary(runtime, dictionary_id).report
    if report is None:
        message = f"The dictionary {dictionary_id!r} has no report. `steerserve dictionaries judge` writes one."
        raise NotFoundError(message, param="dictionary_id", code="report_not_found")
    return HTMLResponse(await asyncio.to_thread(render_report, report))


def described_dictionaries(runtime: Runtime) -> DictionaryList:
    """Return all loaded dictionaries. Not for an event loop."""
    return DictionaryList(data=[runtime.describe(dictionary) for dictionary in runtime.dictionaries()])


def find_dictionary(runtime: Runtime, dictionary_id: str) -> Dictionary:
    """Return the dictionary that a path names.

    Raises:
        NotFoundError: no dictionary of this id is loaded; the message suggests the nearest id.
    """
    loaded = {dictionary.id: dictionary for dictionary in runtime.dictionaries()}
    if dictionary_id not in loaded:
        message = unknown_dictionary_message(dictionary_id, loaded)
        raise NotFoundError(message, param="dictionary_id", code="dictionary_not_found")
    return loaded[dictionary_id]
