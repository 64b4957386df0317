"""The engine that serves one local model: its thread, and what other threads may call on it."""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING, Self, TypeVar

import torch

from steerserve.engine.inbox import Inbox
from steerserve.engine.loop import BatchLoop
from steerserve.engine.request import EngineStats, GenerationRequest, TokenEvent
from steerserve.engine.sequence import Sequence
from steerserve.engine.stream import TokenStream, drain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from collections.abc import Sequence as Many
    from concurrent.futures import Future

    from steerserve.engine.runner import Runner
    from steerserve.engine.sequence import EventSink
    from steerserve.model.lens import LensModel

Result = TypeVar("Result")


class SlotEngine:
    """Continuous batching over one model, on a thread of its own. Implements `Engine`."""

    def __init__(self, runner: Runner, *, num_slots: int, max_queue: int, chunk: int) -> None:
        """Serve `runner`; at most `max_queue` samples wait, and prompts are computed `chunk` tokens at a time."""
        self.runner = runner
        self.num_slots = num_slots
        self._inbox = Inbox(num_slots, max_queue)
        self._loop = BatchLoop(runner, self._inbox, num_slots, chunk)
        self._lock = threading.Lock()
        self._is_stopping = False
        self._is_started = False
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        """Start the thread."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the thread."""
        self.stop()

    @property
    def lens(self) -> LensModel:
        """The model. Its facts can be read on any thread; it computes on the engine's thread only."""
        return self.runner.lens

    @property
    def median_norms(self) -> Mapping[str, float]:
        """Median norm of the vectors at each hook point."""
        return self.runner.median_norms

    @property
    def context_length(self) -> int:
        """Largest number of tokens of a sequence, prompt included."""
        return self.runner.cache.context

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Start the thread. Calling it again has no effect."""
        with self._lock:
            if self._is_started or self._is_stopping:
                return
            self._is_started = True
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the current step. Unfinished requests get an error. Calling it again has no effect."""
        with self._lock:
            self._is_stopping = True
        self._inbox.close()
        if self._thread is None:
            self._fail_all_at_stop()
        elif self._thread is not threading.current_thread():
            self._thread.join()

    def submit(self, requests: Many[GenerationRequest]) -> list[TokenStream]:
        """Queue all of these samples or none, from an event loop; each stream carries the events of one sample.

        Raises:
            QueueFullError: too many samples wait.
            UnavailableError: the engine is stopping.
        """
        streams = [TokenStream(self.abort) for _ in requests]
        sequences = self._enqueue(requests, [stream.sink for stream in streams])
        for stream, sequence in zip(streams, sequences, strict=True):
            stream.bind(sequence)
        return streams

    def generate(self, requests: Many[GenerationRequest]) -> list[list[TokenEvent]]:
        """Generate samples, blocking until all have ended; return the events of each. For threads without a loop.

        Raises:
            QueueFullError: too many samples wait.
            EngineError: a forward pass failed.
        """
        queues: list[queue.SimpleQueue[TokenEvent | Exception]] = [queue.SimpleQueue() for _ in requests]
        self._enqueue(requests, [events.put for events in queues])
        return [list(drain(events)) for events in queues]

    def abort(self, sequence: Sequence) -> None:
        """Drop a sequence before the next step. Any thread. Calling it again has no effect."""
        self._inbox.abort(sequence)

    def run_exclusive(self, fn: Callable[[], Result]) -> Future[Result]:
        """Run `fn` on the engine's thread, in inference mode, between two steps; only `fn` uses the model then.

        At most one such call runs between two steps, in order of arrival. Every stream waits for it, so it should take
        no longer than a step; longer work makes several calls (`steerserve.engine.background`). The future raises what
        `fn` raises. Cancelling the future (or an `asyncio.wrap_future` of it) drops a call that has not begun. Call
        this from any thread but the engine's own.

        Raises:
            QueueFullError: too many calls wait.
            UnavailableError: the engine is stopping. If it stops before `fn` has begun, the future raises this.
        """
        return self._inbox.call(fn)

    def stats(self) -> EngineStats:
        """Return the current counters. Any thread."""
        scheduler, counts = self._loop.scheduler, self._loop.counts
        return EngineStats(
            num_running=scheduler.num_running,
            num_waiting=self._inbox.num_waiting + len(scheduler.waiting),
            num_slots=self.num_slots,
            num_steps_total=counts["steps"],
            num_prompt_tokens_total=counts["prompt_tokens"],
            num_generated_tokens_total=counts["generated_tokens"],
            num_requests_total=self._inbox.num_requests_total,
            num_aborted_total=counts["aborted"],
            num_cached_tokens_total=counts["cached_tokens"],
            kv_usage=scheduler.num_used_columns / (self.num_slots * self.context_length),
        )

    def _enqueue(self, requests: Many[GenerationRequest], sinks: Iterable[EventSink]) -> list[Sequence]:
        tokenizer = self.lens.tokenizer
        sequences = [Sequence(request, tokenizer, sink) for request, sink in zip(requests, sinks, strict=True)]
        self._inbox.put(sequences)
        return sequences

    @torch.inference_mode()
    def _run(self) -> None:
        try:
            self._loop.run()
        finally:  # whatever ended the loop, no client may wait forever
            with self._lock:
                self._is_stopping = True
            self._inbox.close()
            self._fail_all_at_stop()

    def _fail_all_at_stop(self) -> None:
        self._loop.fail_all("The server stopped before this request was done.")
        self._inbox.refuse_calls("The server stopped before this work was begun.")
