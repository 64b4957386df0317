"""`/admin/dictionaries`: loading, replacing and unloading dictionaries while the server generates."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Depends

from steerserve.server.body import json_body
from steerserve.server.dependencies import RuntimeDep
from steerserve.server.keys import require_admin
from steerserve.server.openapi import error_responses, request_body
from steerserve.server.routes.dictionaries import DictionaryId, described_dictionaries
from steerserve.wire.catalog import DeletedDictionary, DictionaryList, LoadDictionaryRequest

router = APIRouter(tags=["Features"], dependencies=[Depends(require_admin)])


@router.get("/admin/dictionaries")
async def list_loaded(runtime: RuntimeDep) -> DictionaryList:
    """List the loaded dictionaries, as `/v1/dictionaries` does."""
    return await asyncio.to_thread(described_dictionaries, runtime)


@router.post(
    "/admin/dictionaries",
    status_code=201,
    responses=error_responses(400, 413, status_409="A dictionary of that id is being loaded right now."),
    openapi_extra=request_body(LoadDictionaryRequest),
)
async def load_dictionary(
    body: Annotated[LoadDictionaryRequest, Depends(json_body(LoadDictionaryRequest))], runtime: RuntimeDep
) -> dict[str, Any]:
    """Load a dictionary and serve it from the next request on; running requests keep the dictionaries they began with.

    A loaded dictionary of the same id is replaced. A dictionary that cannot be used is refused, and nothing changes.
    """
    loaded = await runtime.load_calls.run(runtime.dictionary_library.load, body.id, body.source, force=body.force)
    return await asyncio.to_thread(runtime.describe, loaded)


@router.delete("/admin/dictionaries/{dictionary_id}")
async def unload_dictionary(dictionary_id: DictionaryId, runtime: RuntimeDep) -> DeletedDictionary:
    """Unload a dictionary. If it was the default, the next one becomes the default."""
    await runtime.load_calls.run(runtime.dictionary_library.unload, dictionary_id)
    return DeletedDictionary(id=dictionary_id)
