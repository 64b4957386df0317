"""A sample while it runs: the mutable state of the engine, owned by its thread."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from steerserve.engine.request import FinishReason, GenerationRequest, Phase, TokenEvent, TokenReadings
from steerserve.engine.stops import StopMatcher
from steerserve.model.tokenizer import IncrementalDecoder, Tokenizer
from steerserve.steering.plan import SequenceEdits
from steerserve.steering.site import TokenRole

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from steerserve.engine.request import LogprobEntry
    from steerserve.engine.watching import Readings

    EventSink = Callable[[TokenEvent | Exception], None]


class Sequence:
    """One sample being generated."""

    def __init__(self, request: GenerationRequest, tokenizer: Tokenizer, sink: EventSink) -> None:
        """Wait for a slot; `sink` gets every event, or the exception that ended the sequence."""
        self.request = request
        self.sink = sink
        self.phase = Phase.WAITING
        self.slot = -1
        self.num_computed = 0
        """Number of prompt tokens whose keys and values are in the slot."""
        self.num_cached = 0
        """Number of these that came from another sequence."""
        self.generated: list[int] = []
        self.edits: SequenceEdits | None = None
        self.prompt_key = request.steering.prompt_key if request.steering is not None else None
        self.prompt_logprobs: list[LogprobEntry | None] = []
        self.watch_key = request.watch.key if request.watch is not None else None
        self.prompt_features: list[TokenReadings] = []
        self.readings: Readings = {}
        """Readings at the newest computed position, given with the token that was chosen there."""
        self.token_counts: Tensor | None = None
        """How often each token `[vocab]` was generated; set if a penalty needs it."""
        self.prompt_seen: Tensor | None = None
        """Which tokens `[vocab]` the prompt contains; set if a penalty needs it."""
        self.last_event: TokenEvent | None = None
        """The last event, once the sequence has finished. It is sent, with the receipt, when the slot is free."""
        self.is_aborted = False
        self.has_ended = False
        """Whether the slot is free again and the last event is sent."""
        self.logit_bias: tuple[Tensor, Tensor] | None = None
        """Token ids and the numbers to add to their logits; set by the first step that needs them."""
        self._tokenizer = tokenizer
        self._decoder = IncrementalDecoder(tokenizer, request.prompt_ids)
        self._stops = StopMatcher(request.sampling.stop, include=request.sampling.include_stop)

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """The tokens of the prompt."""
        return self.request.prompt_ids

    @property
    def position(self) -> int:
        """Position of the newest token, which the next step computes."""
        return len(self.prompt_ids) + len(self.generated) - 1

    @property
    def newest_role(self) -> TokenRole:
        """What edits need to know about the newest token."""
        newest = self.generated[-1]
        return TokenRole(newest in self._tokenizer.special_ids, len(self.generated) - 1)

    def prompt_roles(self, start: int, stop: int) -> list[TokenRole]:
        """Return what edits need to know about prompt tokens `[start, stop)`."""
        special = self._tokenizer.special_ids
        return [TokenRole(token_id in special, None) for token_id in self.prompt_ids[start:stop]]

    def can_end(self) -> bool:
        """Tell whether the next token may end the sequence."""
        return len(self.generated) >= self.request.sampling.min_tokens

    def ending_ids(self) -> frozenset[int]:
        """Return the tokens that end the sequence."""
        sampling = self.request.sampling
        eos = frozenset() if sampling.ignore_eos else self._tokenizer.eos_ids
        return eos | frozenset(sampling.stop_token_ids)

    def append(self, token_id: int, logprob: LogprobEntry | None) -> None:
        """Add the chosen token: decode it, check whether it ends the sequence, and send the event."""
        sampling = self.request.sampling
        ends = self.can_end() and token_id in self.ending_ids()
        self.generated.append(token_id)
        num_generated = len(self.generated)
        is_last = num_generated >= sampling.max_tokens
        reason: FinishReason | None = None
        stop_reason: str | int | None = None
        added = ""
        if ends:
            reason = "stop"
            stop_reason = None if token_id in self._tokenizer.eos_ids else token_id
            added = self._decoder.flush()
        else:
            added = self._decoder.push(token_id)
            if is_last:
                added += self._decoder.flush()
        text, matched = self._stops.push(added, can_stop=num_generated >= sampling.min_tokens)
        if matched is not None:
            reason, stop_reason = "stop", matched
        elif is_last and not ends:
            reason = "length"
        if matched is None and reason is not None:
            text += self._stops.flush()
        base = self._base_event()
        if not ends:
            logprobs = (logprob,) if logprob is not None else ()
            features = (TokenReadings(token_id, self.position - 1, self.readings),) if self.request.watch else ()
            base = replace(base, token_ids=(token_id,), logprobs=logprobs, features=features, token_texts=(added,))
        self._send(replace(base, text=text, finish_reason=reason, stop_reason=stop_reason))

    def finish_prompt_only(self) -> None:
        """End a request for no tokens, whose prompt has been read."""
        self._send(replace(self._base_event(), finish_reason="length"))

    def send_last(self) -> None:
        """Send the last event, with the receipt."""
        if self.last_event is not None:
            receipt = self.edits.receipt() if self.edits is not None else None
            self.sink(replace(self.last_event, receipt=receipt))
        self.drop_sink()

    def fail(self, error: Exception) -> None:
        """End the sequence with an error."""
        self.phase = Phase.FINISHED
        self.sink(error)
        self.drop_sink()

    def drop_sink(self) -> None:
        """Forget the sink after the last event.

        Sequence and sink refer to each other. Without this, they would keep the request's dictionaries in memory until
        the next garbage collection.
        """
        self.sink = _discard

    def _base_event(self) -> TokenEvent:
        is_first = len(self.generated) <= 1
        gives_prompt_logprobs = self.request.sampling.num_prompt_logprobs is not None
        gives_prompt_features = self.request.watch is not None and self.request.watch.prompt
        return TokenEvent(
            text="",
            num_prompt_tokens=len(self.prompt_ids),
            num_cached_tokens=self.num_cached,
            num_generated_tokens=len(self.generated),
            prompt_logprobs=tuple(self.prompt_logprobs) if is_first and gives_prompt_logprobs else None,
            prompt_features=tuple(self.prompt_features) if is_first and gives_prompt_features else None,
        )

    def _send(self, event: TokenEvent) -> None:
        if event.finish_reason is not None:
            self.phase = Phase.FINISHED
            self.last_event = event
            return
        self.sink(event)


def _discard(_: TokenEvent | Exception) -> None:
    """Ignore an event."""
