"""The running samples of a comparison: read as they grow, measured as they end, and always aborted at the end."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from steerserve.compare.scoring import Scorer
from steerserve.core.errors import InvalidRequestError, UnavailableError
from steerserve.requests.running import Generation, GenerationObserver

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Sequence

    from steerserve.compare.metrics import SampleScore
    from steerserve.engine.request import TokenEvent, TokenReadings
    from steerserve.engine.stream import TokenStream
    from steerserve.requests.comparison import PreparedComparison
    from steerserve.requests.served import ServedModel


@dataclass(frozen=True, slots=True)
class TextDelta:
    """New text of a sample."""

    arm: int
    """Index of the arm."""
    index: int
    """Index of the sample in its arm."""
    text: str
    features: tuple[TokenReadings, ...]
    """Readings of the new tokens if they are watched. Those of the prompt come first, with an empty text."""


@dataclass(slots=True)
class ArmSample:
    """One sample, from its first token to its measurement. Once it is written, its readings are freed."""

    arm: int
    """Index of the arm."""
    index: int
    """Index of the sample in its arm."""
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    token_texts: list[str] = field(default_factory=list)
    features: list[TokenReadings] = field(default_factory=list)
    prompt_features: tuple[TokenReadings, ...] | None = None
    last: TokenEvent | None = None
    """The last event of the generation; None while it runs."""
    score: SampleScore | None = None
    """The measurement; None until it is made, and always None without metrics."""


class ComparisonGeneration(Generation):
    """A generation whose complete samples are measured while others still grow. Event loop only."""

    def __init__(
        self,
        served: ServedModel,
        prepared: PreparedComparison,
        streams: Sequence[TokenStream],
        observer: GenerationObserver,
        *,
        with_metrics: bool,
        by_token: bool = False,
    ) -> None:
        """Read `streams`, those of the first arm first, and abort them in the end."""
        super().__init__(streams, observer)
        self._prepared = prepared
        self._scoring = served.scoring
        self._scorer = (
            Scorer(
                served.lens,
                served.engine.median_norms,
                [edited.dictionary for edited in prepared.edited],
                prepared.empty_ids,
                {edited.dictionary.id: edited.features for edited in prepared.edited} if by_token else None,
            )
            if with_metrics
            else None
        )
        self._num_left = [len(prepared.arms)] * prepared.num_samples
        """For each index, the number of arms whose sample is not written yet."""
        self._samples = [ArmSample(*divmod(index, prepared.num_samples)) for index in range(len(streams))]
        self._updates: asyncio.Queue[TextDelta | ArmSample | Exception] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_open = True

    async def updates(self) -> AsyncIterator[list[TextDelta | ArmSample]]:
        """Yield new text, and each sample once it and the sample of the first arm with its index are complete.

        Updates that are ready together come in one list, with the samples sorted by index and then by arm. Ask for the
        next list only after writing this one: its samples are then freed.

        Raises:
            SteerserveError: a sample failed, or could not be measured.
        """
        self._start(self._read())
        num_left = len(self._samples)
        waiting: list[ArmSample] = []
        while num_left:
            deltas: list[TextDelta | ArmSample] = []
            for update in await self._next_updates():
                if isinstance(update, Exception):
                    self._mark_failed()
                    raise update
                if isinstance(update, TextDelta):
                    deltas.append(update)
                else:
                    waiting.append(update)
            complete = [sample for sample in waiting if self._can_be_written(sample)]
            complete.sort(key=lambda sample: (sample.index, sample.arm))
            waiting = [sample for sample in waiting if not self._can_be_written(sample)]
            num_left -= len(complete)
            if deltas or complete:
                yield [*deltas, *complete]
            for sample in complete:
                self._release(sample)

    def first_of(self, sample: ArmSample) -> ArmSample | None:
        """Return the first arm's sample of the same index; None until it is complete."""
        first = self._samples[sample.index]
        is_complete = first.last is not None and (self._scorer is None or first.score is not None)
        return first if is_complete else None

    def fail(self, error: Exception) -> None:
        """Raise `error` in the reader of this generation."""
        super().fail(error)
        self._updates.put_nowait(error)

    def close(self) -> None:
        """Abort running samples and pending measurements. Calling it again does nothing."""
        super().close()
        if not self._is_open:
            return
        self._is_open = False
        for task in self._tasks:
            task.cancel()
        if self._scorer is not None:
            self._scoring.release(self._scorer)

    def _can_be_written(self, sample: ArmSample) -> bool:
        return self._scorer is None or self.first_of(sample) is not None

    def _release(self, sample: ArmSample) -> None:
        """Free the readings of a written sample, and scores once no arm of its index is compared with them."""
        sample.features, sample.prompt_features, sample.token_texts = [], None, []
        if sample.arm:
            sample.score = None
        self._num_left[sample.index] -= 1
        if not self._num_left[sample.index]:
            self._samples[sample.index].score = None

    async def _next_updates(self) -> list[TextDelta | ArmSample | Exception]:
        updates = [await self._updates.get()]
        while not self._updates.empty():
            updates.append(self._updates.get_nowait())
        return updates

    async def _read(self) -> None:
        async for delta in self.deltas():
            for index, event in delta:
                self._take(self._samples[index], event)

    def _take(self, sample: ArmSample, event: TokenEvent) -> None:
        sample.text += event.text
        sample.token_ids += event.token_ids
        sample.token_texts += event.token_texts
        sample.features += event.features
        if event.prompt_features is not None:
            sample.prompt_features = event.prompt_features
            self._updates.put_nowait(TextDelta(sample.arm, sample.index, "", event.prompt_features))
        if event.text or event.features:
            self._updates.put_nowait(TextDelta(sample.arm, sample.index, event.text, event.features))
        if event.finish_reason is None:
            return
        sample.last = event
        if isinstance(event.stop_reason, str):
            _cut_tokens_to_text(sample)
        if self._scorer is None:
            self._updates.put_nowait(sample)
        else:
            self._start(self._score(sample, self._scorer))

    async def _score(self, sample: ArmSample, scorer: Scorer) -> None:
        arm = self._prepared.arms[sample.arm]
        future = self._scoring.submit(scorer, arm, sample.token_ids, lambda: self._is_open)
        sample.score = await asyncio.wrap_future(future)
        self._updates.put_nowait(sample)

    def _start(self, work: Coroutine[None, None, None]) -> None:
        """Run `work` in a task; its error is raised in the reader."""
        task = asyncio.create_task(self._forward_error(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _forward_error(self, work: Coroutine[None, None, None]) -> None:
        try:
            await work
        except asyncio.CancelledError:
            if self._is_open:
                self._updates.put_nowait(UnavailableError("The server stopped before this comparison was measured."))
            raise
        except Exception as error:  # noqa: BLE001 raised again by the reader
            self._updates.put_nowait(error)

    def _put(self, index: int, event: TokenEvent | Exception) -> None:
        """If steering broke an arm's output, add the arm's name to the error."""
        if isinstance(event, InvalidRequestError) and event.param == "steering":
            arm = index // self._prepared.num_samples
            name = self._prepared.arms[arm].name
            event = InvalidRequestError(f"Arm {name!r}: {event.message}", param=f"arms[{arm}].steering")
        super()._put(index, event)


def _cut_tokens_to_text(sample: ArmSample) -> None:
    """Remove the tokens of a stop string; a token that begins inside the text is kept, and its text is cut there."""
    num_chars = len(sample.text)
    starts = [0, *itertools.accumulate(map(len, sample.token_texts))]
    num_kept = next((index for index, start in enumerate(starts[:-1]) if start >= num_chars), len(starts) - 1)
    del sample.token_ids[num_kept:], sample.token_texts[num_kept:]
    if num_kept:
        sample.token_texts[-1] = sample.token_texts[-1][: num_chars - starts[num_kept - 1]]
