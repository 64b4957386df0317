"""The dictionaries being served, as immutable snapshots: a request keeps the one it was checked against."""

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
    """The dictionaries at one moment."""

    dictionaries: Mapping[str, Dictionary] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def default(self) -> Dictionary | None:
        """The dictionary that an edit means when it names none: the first loaded."""
        return next((found for found in self.dictionaries.values() if found.is_default), None)

    def find(self, dictionary_id: str | None, param: str) -> Dictionary:
        """Return the dictionary of that id, or the default one for None.

        Raises:
            InvalidRequestError: there is none, with the nearest name.
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
    """Holds the current snapshot and swaps it whole. Thread-safe."""

    def __init__(self) -> None:
        """Start empty."""
        self._lock = threading.Lock()
        self._snapshot = RegistrySnapshot()

    def snapshot(self) -> RegistrySnapshot:
        """Return what is loaded now."""
        return self._snapshot

    def add(self, dictionary: Dictionary) -> Dictionary:
        """Serve `dictionary` under its id, and return it as it is listed.

        One of the same id is replaced and gives its place to the new one; the first of all becomes the default.
        """
        with self._lock:
            others = self._snapshot.dictionaries
            is_default = all(other.id == dictionary.id or not other.is_default for other in others.values())
            added = replace(dictionary, is_default=is_default)
            self._snapshot = RegistrySnapshot(MappingProxyType({**others, added.id: added}))
        return added

    def remove(self, dictionary_id: str) -> None:
        """Serve a dictionary no longer; where it was the default, the next one becomes it.

        Raises:
            NotFoundError: there is none of that id, with the nearest name.
        """
        with self._lock:
            rest = dict(self._snapshot.dictionaries)
            if dictionary_id not in rest:
                message = unknown_dictionary_message(dictionary_id, rest)
                raise NotFoundError(message, param="dictionary_id", code="dictionary_not_found")
            removed = rest.pop(dictionary_id)
            if removed.is_default and rest:
                following = next(iter(rest))
                rest[following] = replace(rest[following], is_default=True)
            self._snapshot = RegistrySnapshot(MappingProxyType(rest))


def unknown_dictionary_message(dictionary_id: str, dictionaries: Mapping[str, Dictionary]) -> str:
    """Say that there is no such dictionary, with the nearest name and the loaded ones."""
    hint = did_you_mean(dictionary_id, dictionaries)
    loaded = ", ".join(repr(name) for name in dictionaries) or "none"
    return f"There is no dictionary {short_name(dictionary_id)!r}.{hint} Loaded: {loaded}."
