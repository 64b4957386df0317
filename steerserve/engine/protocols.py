"""What the rest of the package asks of an engine. Requests, comparisons and measurements know no more of one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from concurrent.futures import Future

    from steerserve.engine.request import EngineStats, GenerationRequest, TokenEvent
    from steerserve.engine.stream import TokenStream
    from steerserve.model.lens import LensModel

Result = TypeVar("Result")


class Probe(Protocol):
    """Reads activations of the served model, and knows how large they usually are."""

    @property
    def lens(self) -> LensModel:
        """The model. Its facts can be read on any thread; it computes inside `run_exclusive` only."""

    @property
    def median_norms(self) -> Mapping[str, float]:
        """Median norm of the vectors at each hook point. A token with a much longer vector is a sink."""

    def run_exclusive(self, fn: Callable[[], Result]) -> Future[Result]:
        """Run `fn` while nothing else uses the model; the future holds its result or its exception.

        Generation waits meanwhile, so `fn` should take no longer than a step. Longer work makes several calls
        (`steerserve.engine.background`). Cancelling the future drops a call that has not begun. Call this from any
        thread but the engine's own.

        Raises:
            QueueFullError: too many calls wait.
            UnavailableError: the engine is stopping. If it stops before `fn` has begun, the future raises this.
        """


class Engine(Probe, Protocol):
    """Generates the samples of many requests at once."""

    @property
    def num_slots(self) -> int:
        """Number of sequences that can run at once."""

    @property
    def context_length(self) -> int:
        """Largest number of tokens of a sequence, prompt included."""

    @property
    def is_alive(self) -> bool:
        """Whether the engine computes: it was started, and has neither stopped nor died."""

    def start(self) -> None:
        """Start computing. Calling it again has no effect."""

    def stop(self) -> None:
        """Stop after the current step. Unfinished requests end with an error. Calling it again has no effect."""

    def submit(self, requests: Sequence[GenerationRequest]) -> list[TokenStream]:
        """Queue all of these samples or none, from an event loop; each stream carries the events of one sample.

        Raises:
            QueueFullError: too many samples wait.
            UnavailableError: the engine is stopping.
        """

    def generate(self, requests: Sequence[GenerationRequest]) -> list[list[TokenEvent]]:
        """Generate samples, blocking until all have ended; return the events of each.

        Raises:
            QueueFullError: too many samples wait.
            EngineError: a forward pass failed.
        """

    def stats(self) -> EngineStats:
        """Return the current counters. Any thread."""
