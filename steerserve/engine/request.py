"""What goes into the engine and what comes out of it. Frozen data, no torch."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from steerserve.dictionaries.dictionary import Dictionary
    from steerserve.steering.receipt import Receipt
    from steerserve.steering.resolved import ResolvedSteering

FinishReason = Literal["stop", "length"]
NO_BIAS: Mapping[int, float] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen; all values are already checked against the model."""

    max_tokens: int
    """Generated tokens at most; 0 only reads the prompt."""
    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 is off."""
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=lambda: NO_BIAS)
    """Token id to the number added to its logit."""
    seed: int = 0
    """Always set: the server draws one where the client sent none."""
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    """No end-of-sequence or stop token is chosen, and no stop string matched, before this many tokens."""
    num_logprobs: int | None = None
    """None: no log-probabilities. k >= 0: the chosen token's, and those of the k likeliest."""
    num_prompt_logprobs: int | None = None
    """The same for the prompt's tokens (completions with `echo` and `logprobs`)."""
    include_stop: bool = False
    """Keep the matched stop string in the text."""


@dataclass(frozen=True, slots=True)
class Watch:
    """Which activations are given with each token."""

    dictionaries: tuple[Dictionary, ...]
    """At least one."""
    top: int
    """So many of the strongest features of each dictionary."""
    features: tuple[int, ...] = ()
    """Those that are given whatever they are, of every dictionary."""
    prompt: bool = False
    """Whether the prompt's tokens are read too."""

    @property
    def key(self) -> str:
        """Names what is read of a prompt: sequences of one key may share it."""
        contents = ",".join(f"{one.id}={one.contents}" for one in self.dictionaries)
        return f"{self.top};{self.features};{self.prompt};{contents}"


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One sample to generate. `n` samples of a client's request are `n` of these, told apart by `sample_index`."""

    request_id: str
    prompt_ids: tuple[int, ...]
    """At least one token; prompt and `max_tokens` together fit the context."""
    sampling: SamplingParams
    steering: ResolvedSteering | None = None
    sample_index: int = 0
    watch: Watch | None = None


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token with its log-probability, under the steered model and before temperature. Finite; floor -9999."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens at this place, best first, as (token id, log-probability)."""


@dataclass(frozen=True, slots=True)
class FeatureReading:
    """What one dictionary reads at one position, before the edits made there. Finite."""

    top: tuple[tuple[int, float], ...]
    """Features and activations, the strongest first; only those that are active."""
    watch: tuple[float, ...]
    """Activations of the features that were asked for, in their order."""
    skipped: Literal["special", "sink"] | None = None
    """Why the dictionary does not read it: it never learned such tokens."""
    edited: tuple[tuple[int, float], ...] = ()
    """Features whose activations edits changed, with what they are after that."""


@dataclass(frozen=True, slots=True)
class TokenFeatures:
    """A token of a prompt with what was read at it, or a generated one with what was read where it was chosen."""

    token_id: int
    position: int
    """Where that was read: a prompt token's own place, or the place before a generated token."""
    readings: Mapping[str, FeatureReading]
    """By dictionary id."""


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """What one step added to one sample."""

    text: str
    """New text that is final: never half a character, never the start of a possible stop string. May be empty."""
    token_ids: tuple[int, ...] = ()
    """Tokens generated since the last event (an end-of-sequence token is not among them)."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """One entry for each of `token_ids` where asked for."""
    features: tuple[TokenFeatures, ...] = ()
    """One entry for each of `token_ids` where asked for."""
    token_texts: tuple[str, ...] = ()
    """The text each of `token_ids` added when decoded in order; their concatenation is the whole text before stops."""
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    """Prompt tokens whose keys and values came from another sequence."""
    num_generated_tokens: int = 0
    """All generated tokens so far, an end-of-sequence token included."""
    finish_reason: FinishReason | None = None
    """Set on the last event alone."""
    stop_reason: str | int | None = None
    """The stop string or stop token id that ended it."""
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    """On the first event where asked for: an entry for each prompt token, None for the first."""
    prompt_features: tuple[TokenFeatures, ...] | None = None
    """On the first event where asked for: an entry for each prompt token."""
    receipt: Receipt | None = None
    """On the last event where the request was steered."""


class Phase(enum.Enum):
    """Where a sequence stands."""

    WAITING = "waiting"
    PREFILL = "prefill"
    DECODE = "decode"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What the engine is doing and has done."""

    num_running: int
    num_waiting: int
    num_slots: int
    num_steps_total: int
    num_prompt_tokens_total: int
    num_generated_tokens_total: int
    num_requests_total: int
    num_aborted_total: int
    num_cached_tokens_total: int
    kv_usage: float
    """Share of all slots' columns that running sequences fill."""
