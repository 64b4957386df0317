"""Loads and unloads dictionaries while the server generates: one load of an id at a time."""

from __future__ import annotations

import contextlib
import logging
import threading
from typing import TYPE_CHECKING

from steerserve.core.errors import DictionaryBusyError
from steerserve.core.process import return_freed_memory
from steerserve.dictionaries.registry import DictionaryRegistry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from steerserve.dictionaries.dictionary import Dictionary
    from steerserve.dictionaries.loader import DictionaryLoader

_log = logging.getLogger(__name__)


class DictionaryLibrary:
    """Puts loaded dictionaries into the registry and takes them out. Any thread but an event loop's."""

    def __init__(self, loader: DictionaryLoader) -> None:
        """Begin with an empty registry."""
        self.registry = DictionaryRegistry()
        self._loader = loader
        self._busy: set[str] = set()
        self._lock = threading.Lock()

    def load(self, dictionary_id: str, source: str, *, force: bool = False) -> Dictionary:
        """Load a dictionary; it replaces a dictionary with the same id.

        Running requests finish with the dictionaries that they started with.

        Raises:
            DictionarySourceError: the dictionary cannot be used; nothing has changed.
            DictionaryBusyError: a dictionary of the same id is being loaded.
        """
        with self._reserved(dictionary_id):
            dictionary = self.registry.add(self._loader.load(dictionary_id, source, force=force))
        return_freed_memory()
        _log.info(
            "dictionary %s: %s features at %s, from %s", dictionary.id, dictionary.d_sae, dictionary.hook_name, source
        )
        for warning in dictionary.warnings:
            _log.warning("dictionary %s: %s", dictionary.id, warning)
        return dictionary

    def unload(self, dictionary_id: str) -> None:
        """Stop serving a dictionary; its memory becomes free when the running requests have ended.

        Raises:
            NotFoundError: no dictionary has that id.
            DictionaryBusyError: a dictionary of that id is being loaded, and would be served afterwards.
        """
        with self._reserved(dictionary_id):
            self.registry.remove(dictionary_id)
        return_freed_memory()
        _log.info("dictionary %s: unloaded", dictionary_id)

    @contextlib.contextmanager
    def _reserved(self, dictionary_id: str) -> Iterator[None]:
        """Refuse a second load of the same id: otherwise the last load to end would win, not the last requested."""
        with self._lock:
            if dictionary_id in self._busy:
                message = f"The dictionary {dictionary_id!r} is being loaded. Try again when that has ended."
                raise DictionaryBusyError(message, param="id")
            self._busy.add(dictionary_id)
        try:
            yield
        finally:
            with self._lock:
                self._busy.remove(dictionary_id)
