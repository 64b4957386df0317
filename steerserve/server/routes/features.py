"""`GET /v1/features`, `GET /v1/features/{dictionary_id}/{feature}` and setting labels."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query

from steerserve.requests.search import label_feature, view_feature
from steerserve.requests.search import search_features as search
from steerserve.server.body import json_body
from steerserve.server.dependencies import RuntimeDep
from steerserve.server.keys import require_admin, require_inference
from steerserve.server.openapi import error_responses, request_body
from steerserve.server.routes.dictionaries import DictionaryId, find_dictionary
from steerserve.store.search import Sort
from steerserve.wire.features import FeatureList, FeatureObject, LabelRequest

MAX_QUERY_CHARS = 200
_MAX_LISTED = 100
_MAX_OFFSET = 2**31
FeatureIndex = Annotated[int, Path(description="Index of the feature in the dictionary.")]

router = APIRouter(tags=["Features"])


@router.get("/v1/features", dependencies=[Depends(require_inference)])
async def search_features(
    runtime: RuntimeDep,
    dictionary: Annotated[str | None, Query(description="Dictionary id. Default: the default dictionary.")] = None,
    q: Annotated[
        str,
        Query(
            max_length=MAX_QUERY_CHARS,
            description="Words to search for; a feature matches if each of them occurs in its label, its promoted "
            "tokens or its snippets. Empty: all features.",
        ),
    ] = "",
    sort: Annotated[
        Sort,
        Query(
            description="`relevance` combines the match with how well the feature steers. `feature` is in order of the "
            "index; the others are largest first."
        ),
    ] = "relevance",
    limit: Annotated[int, Query(ge=1, le=_MAX_LISTED, description="Largest number of features to return.")] = 20,
    offset: Annotated[int, Query(ge=0, le=_MAX_OFFSET, description="Number of first features to leave out.")] = 0,
) -> FeatureList:
    """Search features, or list them."""
    searched = runtime.registry.snapshot().find(dictionary, "dictionary")

    return await asyncio.to_thread(search, runtime, searched, q, sort=sort, limit=limit, offset=offset)


@router.get("/v1/features/{dictionary_id}/{feature}", dependencies=[Depends(require_inference)])
async def get_feature(dictionary_id: DictionaryId, feature: FeatureIndex, runtime: RuntimeDep) -> FeatureObject:
    """Return everything known about a feature: labels, snippets, histogram, tokens, neighbours, dose."""
    dictionary = find_dictionary(runtime, dictionary_id)
    return await asyncio.to_thread(view_feature, runtime, dictionary, feature)


@router.patch(
    "/admin/features/{dictionary_id}/{feature}",
    dependencies=[Depends(require_admin)],
    responses=error_responses(400, 413),
    openapi_extra=request_body(LabelRequest),
)
async def set_label(
    dictionary_id: DictionaryId,
    feature: FeatureIndex,
    body: Annotated[LabelRequest, Depends(json_body(LabelRequest))],
    runtime: RuntimeDep,
) -> FeatureObject:
    """Set a person's label of a feature, which takes precedence over all others, or remove it. Answers as GET does."""
    dictionary = find_dictionary(runtime, dictionary_id)
    return await asyncio.to_thread(label_feature, runtime, dictionary, feature, body.label)
