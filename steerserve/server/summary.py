"""The log line of a finished request, which has counts and times and never a prompt."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field

logger = logging.getLogger(__name__)

CLIENT_CLOSED_REQUEST = 499
"""Nginx's status for a client that disconnected before the answer."""


@dataclass(slots=True)
class RequestSummary:
    """The facts of one HTTP request, filled in while it is served. Event loop only."""

    request_id: str
    method: str
    route: str = "unknown"
    status: int = CLIENT_CLOSED_REQUEST
    generation_id: str | None = None
    """The `id` of the response object; None if no text was generated."""
    num_prompt_tokens: int = 0
    num_generated_tokens: int = 0
    num_edits: int = 0
    ttft_ms: float | None = None
    finish_reason: str | None = None
    """The finish reasons of all choices, joined by commas; `abort` if the client disconnected."""
    is_quiet: bool = False
    """Whether the request is logged at DEBUG, because monitors send it again and again."""
    started_s: float = field(default_factory=time.perf_counter)

    def log(self) -> None:
        """Write the line to the log."""
        level = logging.DEBUG if self.is_quiet else logging.INFO
        total_ms = 1000 * (time.perf_counter() - self.started_s)
        if self.generation_id is None:
            logger.log(
                level,
                "request %s %s %s status=%d total_ms=%.1f",
                self.request_id,
                self.method,
                self.route,
                self.status,
                total_ms,
            )
            return
        logger.log(
            level,
            "request %s %s %s id=%s status=%d prompt_tokens=%d generated_tokens=%d ttft_ms=%s total_ms=%.1f "
            "finish=%s edits=%d",
            self.request_id,
            self.method,
            self.route,
            self.generation_id,
            self.status,
            self.num_prompt_tokens,
            self.num_generated_tokens,
            "-" if self.ttft_ms is None else f"{self.ttft_ms:.1f}",
            total_ms,
            self.finish_reason,
            self.num_edits,
        )
