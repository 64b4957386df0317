"""The engine thread: takes requests, steps the batch, sends events. It alone touches the model."""

from __future__ import annotations

import collections
import logging
import queue
import threading
from functools import partial
from typing import TYPE_CHECKING, Self, TypeVar

import torch

from steerserve.core.errors import EngineError, SteerserveError
from steerserve.engine.inbox import Inbox
from steerserve.engine.request import EngineStats, GenerationRequest, Phase, TokenEvent
from steerserve.engine.runner import not_finite_error
from steerserve.engine.scheduler import Scheduler
from steerserve.engine.sequence import Sequence
from steerserve.engine.stream import TokenStream, drain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from collections.abc import Sequence as Many
    from concurrent.futures import Future

    from steerserve.engine.runner import Runner
    from steerserve.engine.sampling import Choice
    from steerserve.engine.sequence import EventSink

Result = TypeVar("Result")

_log = logging.getLogger(__name__)


class Engine:
    """Continuous batching over one model, in one thread of its own."""

    def __init__(self, runner: Runner, *, num_slots: int, max_queue: int, chunk: int) -> None:
        """Serve `runner`; at most `max_queue` requests wait, and prompts are computed `chunk` tokens at a time."""
        self.runner = runner
        self.num_slots = num_slots
        self._chunk = chunk
        self._scheduler = Scheduler(num_slots, chunk, runner.cache)
        self._inbox = Inbox(num_slots, max_queue)
        self._lock = threading.Lock()
        self._is_stopping = False
        self._is_started = False
        self._thread: threading.Thread | None = None
        self._counts: collections.Counter[str] = collections.Counter()

    def __enter__(self) -> Self:
        """Start the thread."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the thread."""
        self.stop()

    def start(self) -> None:
        """Start the thread; once it runs, starting again does nothing."""
        with self._lock:
            if self._is_started or self._is_stopping:
                return
            self._is_started = True
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def stop(self) -> None:
        """End the thread after the step under way; requests that are left get an error. Any number of times."""
        with self._lock:
            self._is_stopping = True
        self._inbox.close()
        if self._thread is None:
            self._lose_all_at_stop()
        elif self._thread is not threading.current_thread():
            self._thread.join()

    def submit(self, requests: Many[GenerationRequest]) -> list[TokenStream]:
        """Queue samples, all or none, from an event loop; each stream carries one sample's events.

        Raises:
            QueueFullError: too many wait already.
            UnavailableError: the engine is stopping.
        """
        streams = [TokenStream(self) for _ in requests]
        sequences = self._enqueue(requests, [stream.sink for stream in streams])
        for stream, sequence in zip(streams, sequences, strict=True):
            stream.bind(sequence)
        return streams

    def generate(self, requests: Many[GenerationRequest]) -> list[list[TokenEvent]]:
        """Run samples to their end, blocking; return each one's events. For threads without an event loop.

        Raises:
            QueueFullError: too many wait already.
            EngineError: a forward pass failed.
        """
        queues: list[queue.SimpleQueue[TokenEvent | Exception]] = [queue.SimpleQueue() for _ in requests]
        self._enqueue(requests, [events.put for events in queues])
        return [list(drain(events)) for events in queues]

    def abort(self, sequence: Sequence) -> None:
        """Drop a sequence before the next step. Any thread, any number of times."""
        self._inbox.abort(sequence)

    def run_exclusive(self, fn: Callable[[], Result]) -> Future[Result]:
        """Run `fn` on the engine's thread, in inference mode, between two steps; it alone uses the model then.

        At most one such call runs between two steps, in order of arrival. Every stream waits for it, so it should do
        no more than a step's work; who has more makes several calls. What it raises, the future raises. Cancelling
        the future (or an `asyncio.wrap_future` of it) drops what has not begun. Any thread but the engine's own.

        Raises:
            QueueFullError: too many wait already.
            UnavailableError: the engine is stopping; the future raises it too, where it stops before `fn` has begun.
        """
        return self._inbox.call(fn)

    def stats(self) -> EngineStats:
        """Return the present numbers. Any thread."""
        scheduler = self._scheduler
        used = sum(r.num_used for r in list(scheduler.slots) if r is not None and r.sequence is not None)
        return EngineStats(
            num_running=scheduler.num_running,
            num_waiting=self._inbox.num_waiting + len(scheduler.waiting),
            num_slots=self.num_slots,
            num_steps_total=self._counts["steps"],
            num_prompt_tokens_total=self._counts["prompt_tokens"],
            num_generated_tokens_total=self._counts["generated_tokens"],
            num_requests_total=self._inbox.num_requests_total,
            num_aborted_total=self._counts["aborted"],
            num_cached_tokens_total=self._counts["cached_tokens"],
            kv_usage=used / (self.num_slots * self.runner.cache.context),
        )

    def _enqueue(self, requests: Many[GenerationRequest], sinks: Iterable[EventSink]) -> list[Sequence]:
        tokenizer = self.runner.lens.tokenizer
        sequences = [Sequence(request, tokenizer, sink) for request, sink in zip(requests, sinks, strict=True)]
        self._inbox.put(sequences)
        return sequences

    @torch.inference_mode()
    def _run(self) -> None:
        try:
            self._step_until_stopped()
        finally:  # whatever ended the loop, nobody may wait for it
            with self._lock:
                self._is_stopping = True
            self._inbox.close()
            self._lose_all_at_stop()

    def _step_until_stopped(self) -> None:
        while self._inbox.wait(is_busy=self._is_busy()):
            self._take_arrivals()
            try:
                self._step()
            except Exception:  # noqa: BLE001 one step's failure must not end the thread
                _log.exception("the engine's step failed; its requests are lost, the engine goes on")
                self._fail_all("The server failed while computing this request.")
            self._run_call()

    def _take_arrivals(self) -> None:
        arrived, has_aborts = self._inbox.take()
        self._scheduler.waiting.extend(arrived)
        if has_aborts:
            self._drop_aborted()

    def _run_call(self) -> None:
        call = self._inbox.take_call()
        if call is not None:
            call.run()
        del call  # the traceback of what it raised knows this frame, and would be kept by it until a collection

    def _is_busy(self) -> bool:
        return bool(self._scheduler.waiting or self._scheduler.num_running)

    def _step(self) -> None:
        """Admit, compute up to a chunk of prompts, then one token of every decoding sequence."""
        for sequence in self._scheduler.admit():
            self._counts["cached_tokens"] += sequence.num_cached
            self._guarded(sequence, partial(self._open, sequence))
        budget = self._chunk
        while budget > 0 and (chunk := self._scheduler.next_chunk()) is not None:
            sequence, start, stop = chunk
            budget -= max(stop - start, 1)
            self._guarded(sequence, partial(self._prefill, *chunk))
        if self._scheduler.num_decoding:
            self._decode_guarded()
        self._counts["steps"] += 1

    def _guarded(self, sequence: Sequence, work: Callable[[], None]) -> None:
        """Do one sequence's part; where it fails, that sequence alone is lost."""
        if sequence.phase is Phase.FINISHED:
            return
        try:
            work()
        except SteerserveError as error:
            self._end(sequence, error)
        except Exception:  # noqa: BLE001 whatever one request's part raises, the others go on
            _log.exception("request %s failed", sequence.request.request_id)
            self._end(sequence, EngineError("The server failed while computing this request."))

    def _open(self, sequence: Sequence) -> None:
        self.runner.open_edits(sequence)
        shared = self._scheduler.shared_prompt_sums(sequence)
        if sequence.edits is not None and shared is not None:
            sequence.edits.restore(shared)

    def _prefill(self, sequence: Sequence, start: int, stop: int) -> None:
        logits: torch.Tensor | None
        if start == len(sequence.prompt_ids):
            record = self._scheduler.slots[sequence.slot]
            logits = record.last_logits if record is not None else None
        else:
            logits = self.runner.prefill(sequence, start, stop)
            self._scheduler.computed(sequence, stop, logits)
            self._counts["prompt_tokens"] += stop - start
        if logits is None:
            return
        if sequence.request.sampling.max_tokens == 0:
            sequence.finish_prompt_only()
            self._end(sequence)
            return
        choice = self.runner.choose_first(sequence, logits)
        self._scheduler.start_decoding(sequence)
        self._append(sequence, choice)
        if sequence.phase is Phase.FINISHED:
            self._end(sequence)

    def _decode_guarded(self) -> None:
        """Do a decode step; where it fails, the rows of the batch are lost and those that wait are not."""
        try:
            self._decode()
        except Exception:  # noqa: BLE001 whatever the model raises
            _log.exception("a decode step failed; its requests are lost")
            self.runner.drop_plan()
            for sequence in self._scheduler.decoding:
                self._end(sequence, EngineError("The server failed while computing this request."))

    def _decode(self) -> None:
        sequences = self._scheduler.decoding
        choices = self.runner.decode(sequences)
        for sequence, choice in zip(sequences, choices, strict=True):
            self._append(sequence, choice)
        finished = [sequence for sequence in sequences if sequence.phase is Phase.FINISHED]
        if finished:
            self.runner.flush_plan()
        for sequence in finished:
            self._end(sequence)

    def _append(self, sequence: Sequence, choice: Choice) -> None:
        record = self._scheduler.slots[sequence.slot]
        if record is not None:
            record.num_used = sequence.position + 1
        if choice.token_id is None:
            sequence.fail(not_finite_error(sequence))
            return
        self._counts["generated_tokens"] += 1
        sequence.append(choice.token_id, choice.logprob)

    def _end(self, sequence: Sequence, error: Exception | None = None) -> None:
        """Free the slot, then send what ends the stream. A sequence that has ended stays as it is."""
        if sequence.has_ended:
            return
        sequence.has_ended = True
        if sequence.phase is Phase.DECODE:
            self.runner.flush_plan()
        self._scheduler.release(sequence, keep=error is None)
        self._inbox.count_ended()
        if error is not None:
            sequence.fail(error)
        else:
            sequence.send_last()

    def _drop_aborted(self) -> None:
        scheduler = self._scheduler
        for sequence in [*scheduler.waiting, *scheduler.prefilling, *scheduler.decoding]:
            if not sequence.is_aborted:
                continue
            if sequence.phase is Phase.DECODE:
                self.runner.flush_plan()
            scheduler.release(sequence)
            sequence.has_ended = True
            sequence.phase = Phase.FINISHED
            sequence.let_go()
            self._inbox.count_ended()
            self._counts["aborted"] += 1

    def _fail_all(self, message: str) -> None:
        """Start over with empty slots; everyone under way gets an error. Touches no tensor, so that it cannot fail."""
        scheduler = self._scheduler
        self._scheduler = Scheduler(self.num_slots, self._chunk, self.runner.cache)
        self.runner.drop_plan()
        lost = [*scheduler.waiting, *self._inbox.lose_all(), *scheduler.prefilling, *scheduler.decoding]
        for sequence in lost:
            sequence.fail(EngineError(message))

    def _lose_all_at_stop(self) -> None:
        self._fail_all("The server stopped before this request was done.")
        self._inbox.refuse_calls("The server stopped before this was begun.")
