"""`GET /v1/features`, `GET /v1/features/{dictionary_id}/{feature}` and the labels that people give."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Depends, Path, Query

from steerserve.core.errors import FeatureStoreError, NotFoundError
from steerserve.requests.features import feature_object, feature_row
from steerserve.server.body import json_body
from steerserve.server.dependencies import RuntimeDep
from steerserve.server.keys import require_admin, require_inference
from steerserve.server.openapi import label_responses, request_body
from steerserve.server.routes.dictionaries import DictionaryId, find_dictionary
from steerserve.store.records import Label
from steerserve.store.search import Sort
from steerserve.wire.features import FeatureList, FeatureObject, LabelRequest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from steerserve.dictionaries.dictionary import Dictionary
    from steerserve.runtime import Runtime
    from steerserve.store.store import FeatureStore

MAX_QUERY_CHARS = 200
_MAX_LISTED = 100
_MAX_OFFSET = 2**31
FeatureIndex = Annotated[int, Path(description="The feature's index in the dictionary.")]

router = APIRouter(tags=["Features"])
_log = logging.getLogger(__name__)


@router.get("/v1/features", dependencies=[Depends(require_inference)])
async def search_features(
    runtime: RuntimeDep,
    dictionary: Annotated[str | None, Query(description="Dictionary id; the default one if absent.")] = None,
    q: Annotated[
        str,
        Query(
            max_length=MAX_QUERY_CHARS,
            description="Words; a feature matches where each is in its label, its promoted tokens or its snippets. "
            "Empty: all features.",
        ),
    ] = "",
    sort: Annotated[
        Sort,
        Query(description="`relevance` is match and steerability; the others are the largest first, `feature` not."),
    ] = "relevance",
    limit: Annotated[int, Query(ge=1, le=_MAX_LISTED, description="At most so many.")] = 20,
    offset: Annotated[int, Query(ge=0, le=_MAX_OFFSET, description="Pass over so many.")] = 0,
) -> FeatureList:
    """Search features, or list them."""
    searched = runtime.registry.snapshot().find(dictionary, "dictionary")

    def search() -> FeatureList:
        with _reading(searched):
            store = _store(runtime, searched)
            if q.strip() and not store.is_harvested():  # nothing was read that words could be found in
                raise _not_interpreted(searched)
            rows, has_more = store.search(q, sort, limit, offset)
        return FeatureList(data=[feature_row(searched, row) for row in rows], has_more=has_more)

    return await asyncio.to_thread(search)


@router.get("/v1/features/{dictionary_id}/{feature}", dependencies=[Depends(require_inference)])
async def get_feature(dictionary_id: DictionaryId, feature: FeatureIndex, runtime: RuntimeDep) -> FeatureObject:
    """Give all that is known of a feature: labels, snippets, histogram, tokens, neighbours, dose."""
    dictionary = find_dictionary(runtime, dictionary_id)
    _check_feature(dictionary, feature)

    def view() -> FeatureObject:
        with _reading(dictionary):
            return _view(dictionary, feature, _store(runtime, dictionary))

    return await asyncio.to_thread(view)


@router.patch(
    "/admin/features/{dictionary_id}/{feature}",
    dependencies=[Depends(require_admin)],
    responses=label_responses(),
    openapi_extra=request_body(LabelRequest),
)
async def set_label(
    dictionary_id: DictionaryId,
    feature: FeatureIndex,
    body: Annotated[LabelRequest, Depends(json_body(LabelRequest))],
    runtime: RuntimeDep,
) -> FeatureObject:
    """Give a feature a label, which wins over all others, or take it away again. Answers as GET does."""
    dictionary = find_dictionary(runtime, dictionary_id)
    _check_feature(dictionary, feature)

    def label() -> FeatureObject:
        store = runtime.stores.for_writing(dictionary, runtime.model_id)
        store.set_label(feature, Label(body.label, "person") if body.label is not None else None)
        return _view(dictionary, feature, store)

    return await asyncio.to_thread(label)


def _view(dictionary: Dictionary, feature: int, store: FeatureStore) -> FeatureObject:
    stored = store.feature(feature)
    harvested = stored.harvested if stored is not None else None
    nearest = [neighbour for neighbour, _ in harvested.neighbours] if harvested is not None else []
    return feature_object(dictionary, feature, stored, store.labels(nearest))


def _check_feature(dictionary: Dictionary, feature: int) -> None:
    if not 0 <= feature < dictionary.d_sae:
        message = f"The dictionary {dictionary.id!r} has features 0 to {dictionary.d_sae - 1}."
        raise NotFoundError(message, param="feature", code="feature_not_found")


def _store(runtime: Runtime, dictionary: Dictionary) -> FeatureStore:
    store = runtime.stores.find(dictionary)
    if store is None:
        raise _not_interpreted(dictionary)
    return store


def _not_interpreted(dictionary: Dictionary) -> NotFoundError:
    message = (
        f"Nothing is known of the features of {dictionary.id!r} yet. POST /admin/interpret reads text with the "
        "dictionary and finds out, as the command `steerserve interpret` does."
    )
    return NotFoundError(message, param="dictionary", code="not_interpreted")


@contextlib.contextmanager
def _reading(dictionary: Dictionary) -> Iterator[None]:
    """Tell clients without an admin's key no path of the server: its log has it."""
    try:
        yield
    except FeatureStoreError as error:
        _log.warning("dictionary %s: %s", dictionary.id, error.message)
        message = f"What is known of the features of {dictionary.id!r} cannot be read. The server's log says why."
        raise FeatureStoreError(message) from error
