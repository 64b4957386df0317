"""A worker's process as the supervisor sees it: started by this server, or left behind by an earlier one."""

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
    """Exit code, or the negative number of a signal, as in `subprocess`; None if no server saw the process end."""

    def __str__(self) -> str:
        """Return the end of a sentence that begins with "The job's process"."""
        if self.status is None:
            return "ended together with the server"
        if self.status >= 0:
            return f"ended with exit code {self.status}"
        try:
            return f"was killed by {signal.Signals(-self.status).name}"
        except ValueError:
            return f"was killed by signal {-self.status}"


class Process(Protocol):
    """What the supervisor needs of either process."""

    def poll(self) -> Exit | None:
        """Return how the process ended; None while it runs."""

    def stop(self) -> None:
        """Request that the process saves its work and ends; kill it if it does not in time."""


class OwnProcess:
    """A process that this server started."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path, *, grace_s: float) -> None:
        """Start the process, with a pipe as input that this server's end closes, and `log` as output.

        Raises:
            OSError: it cannot be started.
        """
        self._grace_s = grace_s
        self._kill_at: float | None = None
        with log.open("ab") as output:
            # A session of its own, since Ctrl-C in a terminal is meant for the server.
            self._process = subprocess.Popen(  # noqa: S603 a command of ours
                command,
                env=dict(environment),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def poll(self) -> Exit | None:
        """Return how the process ended; None while it runs. Kills it `grace_s` after `stop`."""
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
        """Request that the process saves its work and ends; a second call does nothing."""
        if self._kill_at is None:
            self._kill_at = time.monotonic() + self._grace_s
            self._process.terminate()


class OrphanProcess:
    """A process that an earlier server left behind, if it still runs. It ends by itself, since that server is gone."""

    def __init__(self, lock: Path) -> None:
        """Watch the process that holds the lock of the file `lock`."""
        self._lock = lock

    def poll(self) -> Exit | None:
        """Return how the process ended; None while it runs."""
        with FileLock(self._lock) as lock:
            return Exit(None) if lock.acquire() else None

    def stop(self) -> None:
        """Do nothing: the process is stopping already."""
