"""A request under way: the one mutable thing of the engine, owned by its thread."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from steerserve.engine.request import FinishReason, GenerationRequest, Phase, TokenEvent, TokenFeatures, TokenLogprob
from steerserve.engine.stops import StopMatcher
from steerserve.model.tokenizer import IncrementalDecoder, Tokenizer
from steerserve.steering.plan import SequenceEdits
from steerserve.steering.site import TokenPosition

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from steerserve.engine.watching import Readings

    EventSink = Callable[[TokenEvent | Exception], None]


class Sequence:
    """One sample being generated."""

    def __init__(self, request: GenerationRequest, tokenizer: Tokenizer, sink: EventSink) -> None:
        """Start waiting; `sink` gets every event, or the exception that ended it."""
        self.request = request
        self.sink = sink
        self.phase = Phase.WAITING
        self.slot = -1
        self.num_computed = 0
        """Prompt tokens whose keys and values are in the slot."""
        self.num_cached = 0
        self.generated: list[int] = []
        self.edits: SequenceEdits | None = None
        self.prompt_key = request.steering.prompt_key if request.steering is not None else None
        self.prompt_logprobs: list[TokenLogprob | None] = []
        self.watch_key = request.watch.key if request.watch is not None else None
        self.prompt_features: list[TokenFeatures] = []
        self.readings: Readings = {}
        """At the newest position that was computed; given with the token that it chooses."""
        self.token_counts: Tensor | None = None
        """`[vocab]`, of generated tokens, where a penalty needs them."""
        self.prompt_seen: Tensor | None = None
        self.last_event: TokenEvent | None = None
        """Set when the sequence has finished; the engine sends it, with the receipt, once the slot is free."""
        self.is_aborted = False
        self.has_ended = False
        """Whether the engine has freed its slot and sent what ends it."""
        self.logit_bias: tuple[Tensor, Tensor] | None = None
        """Token ids and what is added to their logits, once a step has needed them."""
        self._tokenizer = tokenizer
        self._decoder = IncrementalDecoder(tokenizer, request.prompt_ids)
        self._stops = StopMatcher(request.sampling.stop, include=request.sampling.include_stop)

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """The prompt."""
        return self.request.prompt_ids

    @property
    def position(self) -> int:
        """Where the newest token stands, the next one to be computed."""
        return len(self.prompt_ids) + len(self.generated) - 1

    @property
    def newest_place(self) -> TokenPosition:
        """What edits ask of the newest token."""
        newest = self.generated[-1]
        return TokenPosition(newest in self._tokenizer.special_ids, len(self.generated) - 1)

    def prompt_places(self, start: int, stop: int) -> list[TokenPosition]:
        """Return what edits ask of prompt tokens `[start, stop)`."""
        special = self._tokenizer.special_ids
        return [TokenPosition(token_id in special, None) for token_id in self.prompt_ids[start:stop]]

    def can_end(self) -> bool:
        """Whether the next token may be one that ends the sequence."""
        return len(self.generated) >= self.request.sampling.min_tokens

    def ending_ids(self) -> frozenset[int]:
        """Return the tokens that end the sequence."""
        sampling = self.request.sampling
        eos = frozenset() if sampling.ignore_eos else self._tokenizer.eos_ids
        return eos | frozenset(sampling.stop_token_ids)

    def append(self, token_id: int, logprob: TokenLogprob | None) -> None:
        """Take the chosen token: decode it, look for an end, and send the event."""
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
            features = (TokenFeatures(token_id, self.position - 1, self.readings),) if self.request.watch else ()
            base = replace(base, token_ids=(token_id,), logprobs=logprobs, features=features, token_texts=(added,))
        self._send(replace(base, text=text, finish_reason=reason, stop_reason=stop_reason))

    def finish_prompt_only(self) -> None:
        """End a request that wanted no tokens, only its prompt read."""
        self._send(replace(self._base_event(), finish_reason="length"))

    def send_last(self) -> None:
        """Send the last event, with the receipt of what steering did."""
        if self.last_event is not None:
            receipt = self.edits.receipt() if self.edits is not None else None
            self.sink(replace(self.last_event, receipt=receipt))
        self.let_go()

    def fail(self, error: Exception) -> None:
        """End with an error."""
        self.phase = Phase.FINISHED
        self.sink(error)
        self.let_go()

    def let_go(self) -> None:
        """Forget who gets the events, now that there are no more.

        The two know each other, and would keep the dictionaries of this request until the next garbage collection.
        """
        self.sink = _nobody

    def _base_event(self) -> TokenEvent:
        is_first = len(self.generated) <= 1
        wants_prompt = self.request.sampling.num_prompt_logprobs is not None
        watches_prompt = self.request.watch is not None and self.request.watch.prompt
        return TokenEvent(
            text="",
            num_prompt_tokens=len(self.prompt_ids),
            num_cached_tokens=self.num_cached,
            num_generated_tokens=len(self.generated),
            prompt_logprobs=tuple(self.prompt_logprobs) if is_first and wants_prompt else None,
            prompt_features=tuple(self.prompt_features) if is_first and watches_prompt else None,
        )

    def _send(self, event: TokenEvent) -> None:
        if event.finish_reason is not None:
            self.phase = Phase.FINISHED
            self.last_event = event
            return
        self.sink(event)


def _nobody(_: TokenEvent | Exception) -> None:
    """Take what nobody waits for."""
