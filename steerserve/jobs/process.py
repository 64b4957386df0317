"""The process of a worker as its supervisor sees it: one it started, or one that an earlier server left behind."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from steerserve.core.lock import FileLock

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended."""

    status: int | None
    """As in `subprocess`: negative is a signal. None where nobody saw it end."""

    def __str__(self) -> str:
        """Say it so that "its process ..." is a sentence."""
        if self.status is None:
            return "ended together with the server"
        if self.status >= 0:
            return f"ended with exit code {self.status}"
        try:
            return f"was killed by {signal.Signals(-self.status).name}"
        except ValueError:
            return f"was killed by signal {-self.status}"


class Process(Protocol):
    """What the supervisor needs of either kind."""

    def poll(self) -> Exit | None:
        """Return how it ended; None while it runs."""

    def stop(self) -> None:
        """Ask it to save what it has and end, and see to it that it does."""


class Worker:
    """A process of this server's own."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path, *, grace_s: float) -> None:
        """Start it; it gets a pipe whose other end dies with this process, and `log` for what it prints.

        Raises:
            OSError: it cannot be started.
        """
        self._grace_s = grace_s
        self._kill_at: float | None = None
        with log.open("ab") as opened:
            # A session of its own: Ctrl-C in a terminal is meant for the server.
            self._process = subprocess.Popen(  # noqa: S603 our own command
                command,
                env=dict(environment),
                stdin=subprocess.PIPE,
                stdout=opened,
                stderr=opened,
                start_new_session=True,
            )

    def poll(self) -> Exit | None:
        """Return how it ended; None while it runs. Kills it when it was asked to stop and its time is over."""
        status = self._process.poll()
        if status is None:
            if self._kill_at is not None and time.monotonic() >= self._kill_at:
                self._process.kill()
            return None
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        return Exit(status)

    def stop(self) -> None:
        """Ask it to save what it has and end; calling it again changes nothing."""
        if self._kill_at is None:
            self._kill_at = time.monotonic() + self._grace_s
            self._process.terminate()


class Orphan:
    """A process that an earlier server left, which ends by itself since that server is gone; or none at all."""

    def __init__(self, lock: Path) -> None:
        """Watch the process that holds `lock`."""
        self._lock = lock

    def poll(self) -> Exit | None:
        """Return how it ended; None while it runs."""
        with FileLock(self._lock) as lock:
            return Exit(None) if lock.acquire() else None

    def stop(self) -> None:
        """Do nothing: it is stopping."""
