"""The engine's loop, one step at a time: which sequences compute, what each gets, and who fails with whom.

Engine thread only. `SlotEngine` owns the thread and everything that other threads may call.
"""

from __future__ import annotations

import collections
import logging
from functools import partial
from typing import TYPE_CHECKING

from steerserve.core.errors import EngineError, SteerserveError
from steerserve.engine.request import Phase
from steerserve.engine.runner import not_finite_error
from steerserve.engine.scheduler import Scheduler

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from steerserve.engine.inbox import Inbox
    from steerserve.engine.runner import Runner
    from steerserve.engine.sampling import Choice
    from steerserve.engine.sequence import Sequence

_FAILED = "The server failed while computing this request."

_log = logging.getLogger(__name__)


class BatchLoop:
    """Steps the running batch: admits sequences, computes prompts in chunks, then one token of each sequence."""

    def __init__(self, runner: Runner, inbox: Inbox, num_slots: int, chunk: int) -> None:
        """Take sequences from `inbox` into `num_slots` slots, and compute their prompts `chunk` tokens at a time."""
        self.counts: collections.Counter[str] = collections.Counter()
        """Totals since the start: steps, prompt_tokens, cached_tokens, generated_tokens, aborted."""
        self.scheduler = Scheduler(num_slots, chunk, runner.cache)
        self._runner = runner
        self._inbox = inbox

    @property
    def is_busy(self) -> bool:
        """Whether any sequence waits for a slot or holds one."""
        return bool(self.scheduler.waiting or self.scheduler.num_running)

    def run(self) -> None:
        """Step until the inbox is closed."""
        while self._inbox.wait(is_busy=self.is_busy):
            self.take_arrivals()
            try:
                self.step()
            except Exception:  # noqa: BLE001 one step's failure must not end the thread
                _log.exception("the engine's step failed; its requests are lost, the engine goes on")
                self.fail_all(_FAILED)
            self.run_call()

    def take_arrivals(self) -> None:
        """Queue the sequences that have arrived, and drop those that were aborted."""
        arrived, has_aborts = self._inbox.take()
        self.scheduler.waiting.extend(arrived)
        if has_aborts:
            self._drop_aborted()

    def step(self) -> None:
        """Admit, compute up to a chunk of prompts, then one token of every decoding sequence."""
        for sequence in self.scheduler.admit():
            self.counts["cached_tokens"] += sequence.num_cached
            self._guarded(sequence, partial(self._open, sequence))
        budget = self.scheduler.chunk
        while budget > 0 and (chunk := self.scheduler.next_chunk()) is not None:
            sequence, start, stop = chunk
            budget -= max(stop - start, 1)
            self._guarded(sequence, partial(self._prefill, *chunk))
        if self.scheduler.num_decoding:
            self._decode_guarded()
        self.counts["steps"] += 1

    def run_call(self) -> None:
        """Run the next exclusive call, if one waits."""
        call = self._inbox.take_call()
        if call is not None:
            call.run()
        del call  # the traceback of its exception refers to this frame, which would keep the call until a collection

    def fail_all(self, message: str) -> None:
        """Start over with empty slots; every unfinished request gets an error. Touches no tensor, so it cannot fail."""
        scheduler = self.scheduler
        self.scheduler = scheduler.emptied()
        self._runner.drop_plan()
        lost = [*scheduler.waiting, *self._inbox.lose_all(), *scheduler.prefilling, *scheduler.decoding]
        for sequence in lost:
            sequence.fail(EngineError(message))

    def _guarded(self, sequence: Sequence, work: Callable[[], None]) -> None:
        """Do one sequence's part of the step; if it fails, only that sequence is lost."""
        if sequence.phase is Phase.FINISHED:
            return
        try:
            work()
        except SteerserveError as error:
            self._end(sequence, error)
        except Exception:  # noqa: BLE001 whatever one request's part raises, the others go on
            _log.exception("request %s failed", sequence.request.request_id)
            self._end(sequence, EngineError(_FAILED))

    def _open(self, sequence: Sequence) -> None:
        self._runner.open_edits(sequence)
        shared = self.scheduler.shared_prompt_sums(sequence)
        if sequence.edits is not None and shared is not None:
            sequence.edits.restore(shared)

    def _prefill(self, sequence: Sequence, start: int, stop: int) -> None:
        logits: torch.Tensor | None
        if start == len(sequence.prompt_ids):
            record = self.scheduler.slots[sequence.slot]
            logits = record.last_logits if record is not None else None
        else:
            logits = self._runner.prefill(sequence, start, stop)
            self.scheduler.computed(sequence, stop, logits)
            self.counts["prompt_tokens"] += stop - start
        if logits is None:
            return
        if sequence.request.sampling.max_tokens == 0:
            sequence.finish_prompt_only()
            self._end(sequence)
            return
        choice = self._runner.choose_first(sequence, logits)
        self.scheduler.start_decoding(sequence)
        self._append(sequence, choice)
        if sequence.phase is Phase.FINISHED:
            self._end(sequence)

    def _decode_guarded(self) -> None:
        """Do a decode step; if it fails, the decoding sequences are lost and the waiting ones are not."""
        try:
            self._decode()
        except Exception:  # noqa: BLE001 whatever the model raises
            _log.exception("a decode step failed; its requests are lost")
            self._runner.drop_plan()
            for sequence in self.scheduler.decoding:
                self._end(sequence, EngineError(_FAILED))

    def _decode(self) -> None:
        sequences = self.scheduler.decoding
        choices = self._runner.decode(sequences)
        for sequence, choice in zip(sequences, choices, strict=True):
            self._append(sequence, choice)
        finished = [sequence for sequence in sequences if sequence.phase is Phase.FINISHED]
        if finished:
            self._runner.flush_plan()
        for sequence in finished:
            self._end(sequence)

    def _append(self, sequence: Sequence, choice: Choice) -> None:
        record = self.scheduler.slots[sequence.slot]
        if record is not None:
            record.num_used = sequence.position + 1
        if choice.token_id is None:
            sequence.fail(not_finite_error(sequence))
            return
        self.counts["generated_tokens"] += 1
        sequence.append(choice.token_id, choice.logprob)

    def _end(self, sequence: Sequence, error: Exception | None = None) -> None:
        """Free the slot, then send the stream's last event. A sequence that has ended already is left unchanged."""
        if sequence.has_ended:
            return
        sequence.has_ended = True
        if sequence.phase is Phase.DECODE:
            self._runner.flush_plan()
        self.scheduler.release(sequence, keep=error is None)
        self._inbox.count_ended()
        if error is not None:
            sequence.fail(error)
        else:
            sequence.send_last()

    def _drop_aborted(self) -> None:
        scheduler = self.scheduler
        for sequence in [*scheduler.waiting, *scheduler.prefilling, *scheduler.decoding]:
            if not sequence.is_aborted:
                continue
            if sequence.phase is Phase.DECODE:
                self._runner.flush_plan()
            scheduler.release(sequence)
            sequence.has_ended = True
            sequence.phase = Phase.FINISHED
            sequence.drop_sink()
            self._inbox.count_ended()
            self.counts["aborted"] += 1
