"""Asking an engine without HTTP, and reading its answers whole."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from steerserve.engine.request import GenerationRequest, SamplingParams
from steerserve.engine.runner import Runner
from steerserve.engine.slot_engine import SlotEngine
from steerserve.model.norms import measure_norms

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from steerserve.engine.protocols import Engine
    from steerserve.engine.request import LogprobEntry, TokenEvent
    from steerserve.engine.sequence import Sequence as EngineSequence
    from steerserve.runtime import Runtime


@dataclass(frozen=True, slots=True)
class Answer:
    """One sample, from its first event to its last."""

    text: str
    token_ids: tuple[int, ...]
    tops: tuple[tuple[tuple[int, float], ...], ...]
    """Of each step the likeliest tokens with their log-probabilities, where asked for."""
    logprobs: tuple[float, ...]
    finish_reason: str | None
    stop_reason: str | int | None
    receipt: dict[str, Any] | None
    num_generated: int
    prompt_logprobs: tuple[LogprobEntry | None, ...] | None

    def all_logprobs(self) -> torch.Tensor:
        """Return `[steps, vocab]`; needs a request with `num_logprobs` of the whole vocabulary."""
        rows = []
        for top in self.tops:
            row = torch.empty(len(top))
            row[[token_id for token_id, _ in top]] = torch.tensor([value for _, value in top])
            rows.append(row)
        return torch.stack(rows)


def read(events: Sequence[TokenEvent]) -> Answer:
    """Join events."""
    last = events[-1]
    return Answer(
        text="".join(event.text for event in events),
        token_ids=tuple(token_id for event in events for token_id in event.token_ids),
        tops=tuple(entry.top for event in events for entry in event.logprobs),
        logprobs=tuple(entry.logprob for event in events for entry in event.logprobs),
        finish_reason=last.finish_reason,
        stop_reason=last.stop_reason,
        receipt=last.receipt.as_json(lambda *_: None) if last.receipt is not None else None,
        num_generated=last.num_generated_tokens,
        prompt_logprobs=events[0].prompt_logprobs,
    )


def ask(
    runtime: Runtime,
    prompt: str | Sequence[int],
    steering: object = None,
    *,
    max_tokens: int = 8,
    sample_index: int = 0,
    **sampling: Any,  # noqa: ANN401 any of SamplingParams
) -> GenerationRequest:
    """Build a request: greedy and unending unless told otherwise."""
    ids = runtime.tokenizer.encode_plain(prompt) if isinstance(prompt, str) else prompt
    settings = {"temperature": 0.0, "ignore_eos": True, **sampling}
    return GenerationRequest(
        request_id="test",
        prompt_ids=tuple(ids),
        sampling=SamplingParams(max_tokens=max_tokens, **settings),
        steering=runtime.resolve_steering(steering),
        sample_index=sample_index,
    )


def run(engine: Engine, *requests: GenerationRequest) -> list[Answer]:
    """Generate all at once."""
    return [read(events) for events in engine.generate(requests)]


@contextlib.contextmanager
def fresh_engine(
    runtime: Runtime, *, slots: int = 4, chunk: int = 16, context: int = 128, max_queue: int = 64, start: bool = True
) -> Iterator[SlotEngine]:
    """Open an engine that has computed nothing yet, over the runtime's model."""
    medians = {name: median for name, (median, _) in measure_norms(runtime.lens).items()}
    runner = Runner(runtime.lens, slots, context, medians)
    engine = SlotEngine(runner, num_slots=slots, max_queue=max_queue, chunk=chunk)
    if start:
        engine.start()
    try:
        yield engine
    finally:
        engine.stop()


class Stepper:
    """An engine stepped by hand, so that a test decides what arrives, and what is aborted, before which step."""

    def __init__(self, engine: SlotEngine) -> None:
        self.engine = engine
        self.sequences: list[EngineSequence] = []
        self.events: list[list[TokenEvent | Exception]] = []

    def submit(self, *requests: GenerationRequest) -> list[int]:
        """Queue requests; return what to call them."""
        sinks: list[list[TokenEvent | Exception]] = [[] for _ in requests]
        self.sequences += self.engine._enqueue(requests, [sink.append for sink in sinks])
        self.events += sinks
        return list(range(len(self.events) - len(requests), len(self.events)))

    def abort(self, number: int) -> None:
        """Abort a request."""
        self.engine.abort(self.sequences[number])

    @torch.inference_mode()
    def step(self) -> bool:
        """Do what the engine's thread does for one step; False where there is nothing to do."""
        engine = self.engine
        if not (engine._inbox.has_any or engine._loop.is_busy):
            return False
        engine._loop.take_arrivals()
        engine._loop.step()
        engine._loop.run_call()
        return True

    def finish(self) -> None:
        """Step until nothing is left."""
        while self.step():
            pass

    def answer(self, number: int) -> Answer:
        """Read a finished request's events."""
        events = [event for event in self.events[number] if not isinstance(event, Exception)]
        assert len(events) == len(self.events[number]), self.events[number][-1]
        assert events[-1].finish_reason is not None
        return read(events)
