"""A job as Python code follows it: training or interpreting in a process of its own."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from steerserve.core.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from steerserve.api.backend import Backend

_POLL_S = 0.5
_ENDED = frozenset({"done", "failed", "cancelled"})


class JobHandle:
    """A job that was started. Each property asks for its present state."""

    def __init__(self, backend: Backend, job_id: str) -> None:
        """Follow the job `job_id` of `backend`."""
        self._backend = backend
        self.id = job_id

    @property
    def state(self) -> str:
        """`queued`, `running`, `done`, `failed` or `cancelled`."""
        return str(self._backend.job(self.id)["state"])

    @property
    def progress(self) -> Mapping[str, Any]:
        """The numbers that the job wrote last: stage, step, tokens, losses."""
        progress: Mapping[str, Any] = self._backend.job(self.id)["progress"]
        return progress

    def result(self, timeout_s: float | None = None) -> Mapping[str, Any]:
        """Wait until the job has ended; return its result.

        Raises:
            TimeoutError: it has not ended within `timeout_s`.
            EngineError: it failed or was cancelled; the message says why.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while (job := self._backend.job(self.id))["state"] not in _ENDED:
            if deadline is not None and time.monotonic() > deadline:
                message = f"The job {self.id} is still {job['state']} after {timeout_s} s."
                raise TimeoutError(message)
            time.sleep(_POLL_S)
        if job["state"] != "done":
            raise EngineError(f"The job {self.id} {job['state']}: {job['error'] or 'no reason was given'}.")
        return job["result"] or {}

    def cancel(self) -> None:
        """Cancel the job; a running one saves a checkpoint first."""
        self._backend.cancel_job(self.id)

    def __repr__(self) -> str:
        return f"JobHandle({self.id!r}, {self.state})"
