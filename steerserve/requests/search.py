"""Searching, viewing and labelling features: from the request to its answer. Not for an event loop."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

from steerserve.core.errors import FeatureStoreError, NotFoundError
from steerserve.requests.features import feature_object, feature_row
from steerserve.store.records import Label
from steerserve.wire.features import FeatureList

if TYPE_CHECKING:
    from collections.abc import Iterator

    from steerserve.dictionaries.dictionary import Dictionary
    from steerserve.requests.served import ServedModel
    from steerserve.store.search import Sort
    from steerserve.store.store import FeatureStore
    from steerserve.wire.features import FeatureObject

_log = logging.getLogger(__name__)


def search_features(
    served: ServedModel, dictionary: Dictionary, query: str, *, sort: Sort, limit: int, offset: int = 0
) -> FeatureList:
    """Search a dictionary's features; an empty query lists them all.

    Raises:
        NotFoundError: the dictionary was not interpreted.
        FeatureStoreError: its feature store cannot be read.
    """
    with _hiding_paths(dictionary):
        store = _store(served, dictionary)
        if query.strip() and not store.is_interpreted():  # an empty store has no words to search
            raise _not_interpreted(dictionary)
        rows, has_more = store.search(query, sort, limit, offset)
    return FeatureList(data=[feature_row(dictionary, row) for row in rows], has_more=has_more)


def view_feature(served: ServedModel, dictionary: Dictionary, feature: int) -> FeatureObject:
    """Return everything that the feature store holds about a feature.

    Raises:
        NotFoundError: the dictionary has no such feature, or was not interpreted.
        FeatureStoreError: its feature store cannot be read.
    """
    check_feature(dictionary, feature)
    with _hiding_paths(dictionary):
        return _view(dictionary, feature, _store(served, dictionary))


def label_feature(served: ServedModel, dictionary: Dictionary, feature: int, label: str | None) -> FeatureObject:
    """Set a person's label, which wins over all others, or remove it (None); return the feature as it is then.

    Raises:
        NotFoundError: the dictionary has no such feature.
        FeatureStoreError: its feature store cannot be written.
    """
    check_feature(dictionary, feature)
    store = served.stores.for_writing(dictionary, served.model_id)
    store.set_label(feature, Label(label, "person") if label is not None else None)
    return _view(dictionary, feature, store)


def _view(dictionary: Dictionary, feature: int, store: FeatureStore) -> FeatureObject:
    stored = store.feature(feature)
    record = stored.record if stored is not None else None
    nearest = [neighbour for neighbour, _ in record.neighbours] if record is not None else []
    return feature_object(dictionary, feature, stored, store.labels(nearest))


def check_feature(dictionary: Dictionary, feature: int) -> None:
    """Check that a dictionary has a feature.

    Raises:
        NotFoundError: the dictionary has no feature of that index.
    """
    if not 0 <= feature < dictionary.d_sae:
        message = f"The dictionary {dictionary.id!r} has features 0 to {dictionary.d_sae - 1}, not {feature}."
        raise NotFoundError(message, param="feature", code="feature_not_found")


def _store(served: ServedModel, dictionary: Dictionary) -> FeatureStore:
    store = served.stores.find(dictionary)
    if store is None:
        raise _not_interpreted(dictionary)
    return store


def _not_interpreted(dictionary: Dictionary) -> NotFoundError:
    message = (
        f"The dictionary {dictionary.id!r} has not been interpreted yet, so nothing is known of its features. Send "
        "POST /admin/interpret, or run the command `steerserve interpret`."
    )
    return NotFoundError(message, param="dictionary", code="not_interpreted")


@contextlib.contextmanager
def _hiding_paths(dictionary: Dictionary) -> Iterator[None]:
    """Keep paths of the server out of errors, which clients without an admin key see; the log has them."""
    try:
        yield
    except FeatureStoreError as error:
        _log.warning("dictionary %s: %s", dictionary.id, error.message)
        message = f"The feature store of {dictionary.id!r} cannot be read. The server's log says why."
        raise FeatureStoreError(message) from error
