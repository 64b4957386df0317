"""`GET /v1/dictionaries` and `GET /v1/dictionaries/{id}`."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path

from steerserve.core.errors import NotFoundError
from steerserve.dictionaries.registry import unknown_dictionary_message
from steerserve.server.dependencies import RuntimeDep
from steerserve.server.keys import require_inference
from steerserve.server.schemas.listings import DictionaryList

DictionaryId = Annotated[str, Path(description="As `/v1/dictionaries` lists it.")]

router = APIRouter(tags=["Features"], dependencies=[Depends(require_inference)])


@router.get("/v1/dictionaries")
async def list_dictionaries(runtime: RuntimeDep) -> DictionaryList:
    """List the dictionaries that edits can name."""
    return DictionaryList(data=[dictionary.as_json() for dictionary in runtime.dictionaries()])


@router.get("/v1/dictionaries/{dictionary_id}")
async def get_dictionary(dictionary_id: DictionaryId, runtime: RuntimeDep) -> dict[str, Any]:
    """Describe one dictionary: hook point, architecture, sizes, source, contents and training report."""
    loaded = {dictionary.id: dictionary for dictionary in runtime.dictionaries()}
    if dictionary_id not in loaded:
        message = unknown_dictionary_message(dictionary_id, loaded)
        raise NotFoundError(message, param="dictionary_id", code="dictionary_not_found")
    found: dict[str, Any] = loaded[dictionary_id].as_json()
    return found
