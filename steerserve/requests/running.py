"""The running sequences of one request: read together, observed, and always aborted at the end."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING

from steerserve.core.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from typing import Self

    from steerserve.engine.request import TokenEvent
    from steerserve.engine.stream import TokenStream


class GenerationObserver:
    """Is notified of the events of a generation. This class ignores them; the server's counts and logs them."""

    def first_token(self) -> None:
        """Note the arrival of the first token of any choice."""

    def next_tokens(self, seconds: float, num_tokens: int) -> None:
        """Note `num_tokens` more tokens of a choice, `seconds` after its previous ones."""

    def ended(self, finish_reasons: Sequence[str], num_generated_tokens: int) -> None:
        """Note why each choice ended (`abort`: the reader left), and the number of tokens of all choices."""


class Generation:
    """Reads the token streams of one request in the order in which events arrive. Event loop only.

    `close` must always be called: it aborts running sequences, so that their slots are free before the next step.
    """

    def __init__(self, streams: Sequence[TokenStream], observer: GenerationObserver) -> None:
        """Read `streams`, one for each choice, and abort them in the end."""
        self._streams = streams
        self._observer = observer
        self._has_token = False
        self._ready: deque[tuple[int, TokenEvent | Exception]] = deque()
        self._arrived = asyncio.Event()
        self._finish_reasons: list[str | None] = [None] * len(streams)
        self._num_prompt = [0] * len(streams)
        self._num_generated = [0] * len(streams)
        self._num_cached = [0] * len(streams)
        self._last_token_s: list[float | None] = [None] * len(streams)
        self._is_closed = False
        self._pumps = [asyncio.create_task(self._pump(index, stream)) for index, stream in enumerate(streams)]

    @property
    def num_choices(self) -> int:
        """Number of choices."""
        return len(self._streams)

    @property
    def num_cached_tokens(self) -> list[int]:
        """For each choice, the number of prompt tokens whose computation was shared, so far."""
        return self._num_cached

    @property
    def num_generated_tokens(self) -> int:
        """Number of generated tokens of all choices, so far."""
        return sum(self._num_generated)

    async def wait_for_first(self, timeout_s: float) -> None:
        """Wait for the first event, or for `timeout_s`.

        Raises:
            SteerserveError: the first event is a failure, which can still be answered with a status.
        """
        try:
            await asyncio.wait_for(self._arrived.wait(), timeout_s)
        except TimeoutError:
            return
        if isinstance(error := self._ready[0][1], Exception):
            self._mark_failed()
            raise error

    async def deltas(self) -> AsyncIterator[list[tuple[int, TokenEvent]]]:
        """Yield the new events, merged into one for each choice that has any, as pairs of index and event.

        Raises:
            SteerserveError: a sequence failed.
        """
        while None in self._finish_reasons:
            await self._arrived.wait()
            self._arrived.clear()
            merged: dict[int, TokenEvent] = {}
            failure: Exception | None = None
            while self._ready and failure is None:
                index, event = self._ready.popleft()
                if isinstance(event, Exception):
                    failure = event
                else:
                    merged[index] = _merge(merged[index], event) if index in merged else event
            for index, event in merged.items():
                self._measure(index, event)
            if merged:
                yield sorted(merged.items(), key=lambda pair: pair[0])
            if failure is not None:
                self._mark_failed()
                raise failure

    async def results(self) -> list[TokenEvent]:
        """Wait for the end of all choices; return one merged event for each.

        Raises:
            SteerserveError: a sequence failed.
        """
        parts: list[list[TokenEvent]] = [[] for _ in self._streams]
        async for delta in self.deltas():
            for index, event in delta:
                parts[index].append(event)
        return [_merge(*events) for events in parts]

    def fail(self, error: Exception) -> None:
        """Raise `error` in the reader of this generation."""
        self._put(0, error)

    def close(self) -> None:
        """Abort running sequences and notify the observer. Calling it again does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        for stream, reason in zip(self._streams, self._finish_reasons, strict=True):
            if reason not in {"stop", "length"}:
                stream.abort()
        for pump in self._pumps:
            pump.cancel()
        reasons = [reason or "abort" for reason in self._finish_reasons]
        self._observer.ended(reasons, self.num_generated_tokens)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def _pump(self, index: int, stream: TokenStream) -> None:
        """Put one stream's events into the common queue, and failures too, or the reader would wait forever."""
        has_ended = False
        try:
            async for event in stream:
                has_ended = event.finish_reason is not None
                self._put(index, event)
            if not has_ended:
                self._put(
                    index, EngineError("The generation was ended before it was complete. Send the request again.")
                )
        except Exception as error:  # noqa: BLE001 raised again by the reader
            self._put(index, error)

    def _put(self, index: int, event: TokenEvent | Exception) -> None:
        self._ready.append((index, event))
        self._arrived.set()

    def _mark_failed(self) -> None:
        self._finish_reasons = [reason or "error" for reason in self._finish_reasons]

    def _measure(self, index: int, event: TokenEvent) -> None:
        now = time.perf_counter()
        num_new = event.num_generated_tokens - self._num_generated[index]
        last = self._last_token_s[index]
        if num_new > 0 and last is not None:
            self._observer.next_tokens(now - last, num_new)
        if num_new > 0:
            self._last_token_s[index] = now
            if not self._has_token:
                self._has_token = True
                self._observer.first_token()
        self._num_generated[index] = event.num_generated_tokens
        self._num_cached[index] = event.num_cached_tokens
        if event.finish_reason is not None:
            self._finish_reasons[index] = event.finish_reason


def _merge(*events: TokenEvent) -> TokenEvent:
    """Merge consecutive events of one sequence into one."""
    last = events[-1]
    return replace(
        last,
        text="".join(event.text for event in events),
        token_ids=tuple(token_id for event in events for token_id in event.token_ids),
        logprobs=tuple(logprob for event in events for logprob in event.logprobs),
        features=tuple(entry for event in events for entry in event.features),
        token_texts=tuple(text for event in events for text in event.token_texts),
        prompt_logprobs=next((e.prompt_logprobs for e in events if e.prompt_logprobs is not None), None),
        prompt_features=next((e.prompt_features for e in events if e.prompt_features is not None), None),
    )
