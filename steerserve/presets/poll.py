"""A look at the presets every few seconds, so that a file that broke is in the log before anybody asks for it."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

INTERVAL_S = 5.0

_log = logging.getLogger(__name__)


class PresetPoll:
    """A thread that looks, and sleeps in between. Starting and stopping any number of times is fine; it runs once."""

    def __init__(self, look: Callable[[], object], interval_s: float = INTERVAL_S) -> None:
        """Call `look` every `interval_s` seconds."""
        self._look = look
        self._interval_s = interval_s
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin with the first look, which is made at once."""
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
                self._look()
            except Exception:  # noqa: BLE001 one look's failure must not end the thread
                _log.exception("looking at the presets failed")
            if self._stopped.wait(self._interval_s):
                return
