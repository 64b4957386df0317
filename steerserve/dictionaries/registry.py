"""The served dictionaries, as immutable snapshots: a request keeps the snapshot it was checked against."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from steerserve.core.errors import InvalidRequestError, NotFoundError
from steerserve.core.names import did_you_mean, short_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from steerserve.dictionaries.dictionary import Dictionary


@dataclass(frozen=True, slots=True)
class RegistrySnapshot:
    """The served dictionaries at one moment."""

    dictionaries: Mapping[str, Dictionary] = field(default_factory=lambda: MappingProxyType({}))
    """Dictionaries by id, in the order in which they were first loaded."""

    @property
    def default(self) -> Dictionary | None:
        """The dictionary of an edit that names none: the first loaded. None if no dictionary is loaded."""
        return next((dictionary for dictionary in self.dictionaries.values() if dictionary.is_default), None)

    def find(self, dictionary_id: str | None, param: str) -> Dictionary:
        """Return the dictionary with that id, or the default dictionary for None.

        Raises:
            InvalidRequestError: no such dictionary is loaded; the message suggests the nearest id.
        """
        if dictionary_id is None:
            if self.default is None:
                message = "No dictionary is loaded, so no feature can be steered. Start the server with --dictionary."
                raise InvalidRequestError(message, param=param)
            return self.default
        if dictionary_id in self.dictionaries:
            return self.dictionaries[dictionary_id]
        message = unknown_dictionary_message(dictionary_id, self.dictionaries)
        raise InvalidRequestError(message, param=param)


class DictionaryRegistry:
    """Holds the current snapshot and replaces it as a whole. Thread-safe."""

    def __init__(self) -> None:
        """Start empty."""
        self._lock = threading.Lock()
        self._snapshot = RegistrySnapshot()

    def snapshot(self) -> RegistrySnapshot:
        """Return the dictionaries that are served now."""
        return self._snapshot

    def add(self, dictionary: Dictionary) -> Dictionary:
        """Serve `dictionary` under its id, and return it with `is_default` set.

        It replaces a dictionary with the same id and takes its position; the first dictionary becomes the default.
        """
        with self._lock:
            others = self._snapshot.dictionaries
            is_default = all(other.id == dictionary.id or not other.is_default for other in others.values())
            added = replace(dictionary, is_default=is_default)
            self._snapshot = RegistrySnapshot(MappingProxyType({**others, added.id: added}))
        return added

    def remove(self, dictionary_id: str) -> None:
        """Stop serving a dictionary; if it was the default, the next dictionary becomes the default.

        Raises:
            NotFoundError: no dictionary has that id; the message suggests the nearest id.
        """
        with self._lock:
            remaining = dict(self._snapshot.dictionaries)
            if dictionary_id not in remaining:
                message = unknown_dictionary_message(dictionary_id, remaining)
                raise NotFoundError(message, param="dictionary_id", code="dictionary_not_found")
            removed = remaining.pop(dictionary_id)
            if removed.is_default and remaining:
                following = next(iter(remaining))
                remaining[following] = replace(remaining[following], is_default=True)
            self._snapshot = RegistrySnapshot(MappingProxyType(remaining))


def unknown_dictionary_message(dictionary_id: str, dictionaries: Mapping[str, Dictionary]) -> str:
    """Return the message for an id that is not loaded, with the nearest id and the loaded ids."""
    hint = did_you_mean(dictionary_id, dictionaries)
    loaded = ", ".join(repr(name) for name in dictionaries) or "none"
    return f"There is no dictionary {short_name(dictionary_id)!r}.{hint} Loaded: {loaded}."
