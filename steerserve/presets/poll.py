"""A thread that looks at the preset folder every few seconds, so that a broken file is logged before its use.

`presets/folder.py` notices which files changed.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

INTERVAL_S = 5.0

_log = logging.getLogger(__name__)


class PresetPoll:
    """A thread that checks and sleeps in turn. Starting or stopping again does nothing."""

    def __init__(self, check: Callable[[], object], interval_s: float = INTERVAL_S) -> None:
        """Call `check` every `interval_s` seconds."""
        self._check = check
        self._interval_s = interval_s
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread; its first check is made at once."""
        if self._thread is None and not self._stopped.is_set():
            self._thread = threading.Thread(target=self._run, name="presets", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while True:
            try:
                self._check()
            except Exception:  # noqa: BLE001 one failure must not end the thread
                _log.exception("checking the presets failed")
            if self._stopped.wait(self._interval_s):
                return
