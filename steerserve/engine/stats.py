"""The engine's numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What the engine is doing and has done."""

    num_running: int
    num_waiting: int
    num_slots: int
    num_steps_total: int
    num_prompt_tokens_total: int
    num_generated_tokens_total: int
    num_requests_total: int
    num_aborted_total: int
    num_cached_tokens_total: int
    kv_usage: float
    """Share of all slots' columns that running sequences fill."""
