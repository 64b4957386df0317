"""The samples of one comparison under way: read as they come, scored as they end, and always given back."""

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

    from steerserve.compare.metrics import Reading
    from steerserve.engine.request import TokenEvent, TokenReadings
    from steerserve.engine.stream import TokenStream
    from steerserve.requests.comparison import PreparedComparison
    from steerserve.requests.served import ServedModel


@dataclass(frozen=True, slots=True)
class NewText:
    """What a sample has grown by."""

    arm: int
    index: int
    text: str
    features: tuple[TokenReadings, ...]
    """What was read of each new token, where that is watched; of the prompt's, before any text."""


@dataclass(slots=True)
class GrownSample:
    """One sample, from its first token to its last number; what is written of it alone is let go of after that."""

    arm: int
    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    token_texts: list[str] = field(default_factory=list)
    features: list[TokenReadings] = field(default_factory=list)
    prompt_features: tuple[TokenReadings, ...] | None = None
    last: TokenEvent | None = None
    """Of the generation, once it has ended."""
    reading: Reading | None = None
    """None where no metrics are wanted."""


class ComparisonGeneration(Generation):
    """A generation whose samples are scored while others still grow. Event loop only."""

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
        """Take over `streams`, those of the first arm first."""
        super().__init__(streams, observer)
        self._prepared = prepared
        self._scoring = served.scoring
        self._scorer = (
            Scorer(
                served.lens,
                served.engine.median_norms,
                [one.dictionary for one in prepared.edited],
                prepared.empty_ids,
                {one.dictionary.id: one.features for one in prepared.edited} if by_token else None,
            )
            if with_metrics
            else None
        )
        self._num_left = [len(prepared.arms)] * prepared.num_samples
        """Arms whose sample of an index is not written yet."""
        self._samples = [GrownSample(*divmod(place, prepared.num_samples)) for place in range(len(streams))]
        self._happened: asyncio.Queue[NewText | GrownSample | Exception] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_wanted = True

    async def happenings(self) -> AsyncIterator[list[NewText | GrownSample]]:
        """Yield text as it comes, and each sample once it is complete, with what its numbers need of the first arm.

        What is ready at once comes in one list, in it the samples by index and then by arm. Going on says that those
        are written.

        Raises:
            SteerserveError: a sample failed, or could not be scored.
        """
        self._start(self._read())
        num_left = len(self._samples)
        waiting: list[GrownSample] = []
        while num_left:
            ready: list[NewText | GrownSample] = []
            for happened in await self._all_happened():
                if isinstance(happened, Exception):
                    self._mark_failed()
                    raise happened
                if isinstance(happened, NewText):
                    ready.append(happened)
                else:
                    waiting.append(happened)
            complete = [sample for sample in waiting if self._can_be_written(sample)]
            complete.sort(key=lambda sample: (sample.index, sample.arm))
            waiting = [sample for sample in waiting if not self._can_be_written(sample)]
            num_left -= len(complete)
            if found := [*ready, *complete]:
                yield found
            for sample in complete:
                self._let_go(sample)

    def first_of(self, sample: GrownSample) -> GrownSample | None:
        """Return the first arm's sample of the same index, once it is complete."""
        first = self._samples[sample.index]
        is_complete = first.last is not None and (self._scorer is None or first.reading is not None)
        return first if is_complete else None

    def fail(self, error: Exception) -> None:
        """Let whoever reads this get `error` next."""
        super().fail(error)
        self._happened.put_nowait(error)

    def close(self) -> None:
        """Abort what still runs and give up what is not scored. Calling it again does nothing."""
        super().close()
        if not self._is_wanted:
            return
        self._is_wanted = False
        for task in self._tasks:
            task.cancel()
        if self._scorer is not None:
            self._scoring.release(self._scorer)

    def _can_be_written(self, sample: GrownSample) -> bool:
        return self._scorer is None or self.first_of(sample) is not None

    def _let_go(self, sample: GrownSample) -> None:
        """Give back what no other sample is measured against: readings are the most of a comparison's memory."""
        sample.features, sample.prompt_features, sample.token_texts = [], None, []
        if sample.arm:
            sample.reading = None
        self._num_left[sample.index] -= 1
        if not self._num_left[sample.index]:
            self._samples[sample.index].reading = None

    async def _all_happened(self) -> list[NewText | GrownSample | Exception]:
        happened = [await self._happened.get()]
        while not self._happened.empty():
            happened.append(self._happened.get_nowait())
        return happened

    async def _read(self) -> None:
        async for delta in self.deltas():
            for place, event in delta:
                self._take(self._samples[place], event)

    def _take(self, sample: GrownSample, event: TokenEvent) -> None:
        sample.text += event.text
        sample.token_ids += event.token_ids
        sample.token_texts += event.token_texts
        sample.features += event.features
        if event.prompt_features is not None:
            sample.prompt_features = event.prompt_features
            self._happened.put_nowait(NewText(sample.arm, sample.index, "", event.prompt_features))
        if event.text or event.features:
            self._happened.put_nowait(NewText(sample.arm, sample.index, event.text, event.features))
        if event.finish_reason is None:
            return
        sample.last = event
        if isinstance(event.stop_reason, str):
            _cut_to_text(sample)
        if self._scorer is None:
            self._happened.put_nowait(sample)
        else:
            self._start(self._score(sample, self._scorer))

    async def _score(self, sample: GrownSample, scorer: Scorer) -> None:
        arm = self._prepared.arms[sample.arm]
        future = self._scoring.submit(scorer, arm, sample.token_ids, lambda: self._is_wanted)
        sample.reading = await asyncio.wrap_future(future)
        self._happened.put_nowait(sample)

    def _start(self, work: Coroutine[None, None, None]) -> None:
        """Do something beside the reader, who gets what goes wrong."""
        task = asyncio.create_task(self._told(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _told(self, work: Coroutine[None, None, None]) -> None:
        try:
            await work
        except asyncio.CancelledError:
            if self._is_wanted:
                self._happened.put_nowait(UnavailableError("The server stopped before this comparison was measured."))
            raise
        except Exception as error:  # noqa: BLE001 raised again by the reader
            self._happened.put_nowait(error)

    def _put(self, index: int, event: TokenEvent | Exception) -> None:
        """Name the arm whose steering broke the model's output."""
        if isinstance(event, InvalidRequestError) and event.param == "steering":
            arm = index // self._prepared.num_samples
            name = self._prepared.arms[arm].name
            event = InvalidRequestError(f"Arm {name!r}: {event.message}", param=f"arms[{arm}].steering")
        super()._put(index, event)


def _cut_to_text(sample: GrownSample) -> None:
    """Leave out the tokens of a stop string, all but what begins in the text: nobody reads them."""
    num_chars = len(sample.text)
    starts = [0, *itertools.accumulate(map(len, sample.token_texts))]
    num_kept = next((place for place, start in enumerate(starts[:-1]) if start >= num_chars), len(starts) - 1)
    del sample.token_ids[num_kept:], sample.token_texts[num_kept:]
    if num_kept:
        sample.token_texts[-1] = sample.token_texts[-1][: num_chars - starts[num_kept - 1]]
