"""Prometheus metrics with vLLM's names and the prefix `steerserve_`.

The engine's counters are read from the runtime whenever the metrics are; those of the HTTP side are kept here.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from steerserve.requests.running import GenerationObserver

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from prometheus_client.metrics_core import Metric

    from steerserve.runtime import Runtime
    from steerserve.server.summary import RequestSummary

_FAST_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
_SLOW_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000)
_GAUGES = {
    "num_requests_running": "Number of sequences that are generating.",
    "num_requests_waiting": "Number of sequences that wait for a slot.",
    "num_slots": "Number of sequences that can generate at the same time.",
    "kv_cache_usage_perc": "Share of the key-value cache that is in use, from 0 to 1.",
}
_COUNTERS = {
    "prompt_tokens": "Number of prompt tokens read.",
    "generation_tokens": "Number of tokens generated.",
    "prefix_cache_hits": "Number of prompt tokens whose computation was shared with another sequence.",
    "engine_steps": "Number of forward passes of the model.",
    "sequences": "Number of sequences accepted.",
    "sequences_aborted": "Number of sequences whose client disconnected.",
}


class Metrics:
    """The metrics of one app, in their own registry. Event loop only."""

    def __init__(self, runtime: Runtime) -> None:
        """Start all counters at zero; the engine's counters are read from `runtime`."""
        self._registry = CollectorRegistry(auto_describe=True)
        self._registry.register(_EngineCollector(runtime))
        self._model = runtime.model_id
        self._ttft = self._histogram("time_to_first_token_seconds", "Time from a request to its first token.", _SLOW_S)
        self._itl = self._histogram("inter_token_latency_seconds", "Time between two tokens of a sequence.", _FAST_S)
        self._e2e = self._histogram("e2e_request_latency_seconds", "Time from a request to its end.", _SLOW_S)
        self._num_prompt = self._histogram("request_prompt_tokens", "Number of prompt tokens of a request.", _TOKENS)
        self._num_generated = self._histogram("request_generation_tokens", "Number of tokens generated.", _TOKENS)
        self._success = Counter(
            "steerserve_request_success",
            "Number of ended sequences by reason; `abort`: the client disconnected, `error`: a forward pass failed.",
            ["model_name", "finished_reason"],
            registry=self._registry,
        )
        self._steered = Counter(
            "steerserve_steered_requests", "Number of requests with edits.", ["model_name"], registry=self._registry
        )
        self._requests = Counter(
            "steerserve_http_requests", "Number of answers.", ["method", "route", "status"], registry=self._registry
        )

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def count_request(self, method: str, route: str, status: int) -> None:
        """Count one finished HTTP request."""
        self._requests.labels(method if method in _METHODS else "OTHER", route, str(status)).inc()

    def observe_first_token(self, seconds: float) -> None:
        """Record the time from a request's arrival to its first token."""
        self._ttft.labels(self._model).observe(seconds)

    def observe_next_tokens(self, seconds: float, num_tokens: int) -> None:
        """Record the time since a sequence's previous tokens, divided among its `num_tokens` new ones."""
        for _ in range(num_tokens):
            self._itl.labels(self._model).observe(seconds / num_tokens)

    def count_finished(self, reason: str) -> None:
        """Count one ended sequence."""
        self._success.labels(self._model, reason).inc()

    def observe_request(self, seconds: float, num_prompt_tokens: int, num_generated_tokens: int) -> None:
        """Record a finished generating request."""
        self._e2e.labels(self._model).observe(seconds)
        self._num_prompt.labels(self._model).observe(num_prompt_tokens)
        self._num_generated.labels(self._model).observe(num_generated_tokens)

    def count_steered(self) -> None:
        """Count a request with edits."""
        self._steered.labels(self._model).inc()

    def _histogram(self, name: str, help_text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"steerserve_{name}", help_text, ["model_name"], buckets=buckets, registry=self._registry)


class RequestObserver(GenerationObserver):
    """Records the events of one request's generation in the metrics and in the summary of the request."""

    def __init__(self, metrics: Metrics, summary: RequestSummary) -> None:
        """Record in `metrics` and `summary`."""
        self._metrics = metrics
        self._summary = summary

    def first_token(self) -> None:
        """Record the time to the first token."""
        seconds = time.perf_counter() - self._summary.started_s
        self._summary.ttft_ms = 1000 * seconds
        self._metrics.observe_first_token(seconds)

    def next_tokens(self, seconds: float, num_tokens: int) -> None:
        """Record the time between tokens."""
        self._metrics.observe_next_tokens(seconds, num_tokens)

    def ended(self, finish_reasons: Sequence[str], num_generated_tokens: int) -> None:
        """Record how the request ended."""
        for reason in finish_reasons:
            self._metrics.count_finished(reason)
        self._summary.finish_reason = ",".join(sorted(set(finish_reasons)))
        self._summary.num_generated_tokens = num_generated_tokens
        seconds = time.perf_counter() - self._summary.started_s
        self._metrics.observe_request(seconds, self._summary.num_prompt_tokens, num_generated_tokens)


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class _EngineCollector(Collector):
    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def collect(self) -> Iterator[Metric]:
        stats = self._runtime.stats()
        values: dict[str, float] = {
            "num_requests_running": stats.num_running,
            "num_requests_waiting": stats.num_waiting,
            "num_slots": stats.num_slots,
            "kv_cache_usage_perc": stats.kv_usage,
            "prompt_tokens": stats.num_prompt_tokens_total,
            "generation_tokens": stats.num_generated_tokens_total,
            "prefix_cache_hits": stats.num_cached_tokens_total,
            "engine_steps": stats.num_steps_total,
            "sequences": stats.num_requests_total,
            "sequences_aborted": stats.num_aborted_total,
        }
        for families, kind in ((_GAUGES, GaugeMetricFamily), (_COUNTERS, CounterMetricFamily)):
            for name, help_text in families.items():
                family = kind(f"steerserve_{name}", help_text, labels=["model_name"])
                family.add_metric([self._runtime.model_id], values[name])
                yield family
