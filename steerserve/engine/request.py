"""What goes into the engine and what comes out of it. Frozen data, no torch."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from steerserve.dictionaries.dictionary import Dictionary
    from steerserve.steering.receipt import SteeringReceipt
    from steerserve.steering.resolved import ResolvedSteering

FinishReason = Literal["stop", "length"]
SkipReason = Literal["special", "sink"]
NO_BIAS: Mapping[int, float] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen. All values were checked against the model before."""

    max_tokens: int
    """Largest number of generated tokens; 0 only reads the prompt."""
    temperature: float = 1.0
    """Temperature of the distribution; 0 chooses the likeliest token."""
    top_p: float = 1.0
    top_k: int = 0
    """Number of likeliest tokens to choose from; 0 is all of them."""
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=lambda: NO_BIAS)
    """Number to add to the logit of each token id."""
    seed: int = 0
    """Seed of the noise. The server draws one if the client sent none."""
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    """Number of tokens before which no end-of-sequence or stop token is chosen and no stop string matches."""
    num_logprobs: int | None = None
    """Number k of likeliest tokens whose log-probabilities are given beside the chosen token's; None gives none."""
    num_prompt_logprobs: int | None = None
    """The same number for the prompt's tokens (completions with `echo` and `logprobs`)."""
    include_stop: bool = False
    """Whether the matched stop string stays in the text."""


@dataclass(frozen=True, slots=True)
class Watch:
    """Which activations are given with each token."""

    dictionaries: tuple[Dictionary, ...]
    """The dictionaries that are read; at least one."""
    top: int
    """Number of strongest features of each dictionary to give."""
    features: tuple[int, ...] = ()
    """Features of every dictionary whose activation is always given."""
    prompt: bool = False
    """Whether the prompt's tokens are read too."""

    @property
    def key(self) -> str:
        """Key of what is read of a prompt; sequences with the same key can share it."""
        contents = ",".join(f"{dictionary.id}={dictionary.contents}" for dictionary in self.dictionaries)
        return f"{self.top};{self.features};{self.prompt};{contents}"


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One sample to generate. The `n` samples of a client's request differ in `sample_index` only."""

    request_id: str
    prompt_ids: tuple[int, ...]
    """At least one token; prompt and `max_tokens` together fit into the context."""
    sampling: SamplingParams
    steering: ResolvedSteering | None = None
    sample_index: int = 0
    watch: Watch | None = None


@dataclass(frozen=True, slots=True)
class LogprobEntry:
    """A token's log-probability under the steered model, before temperature. Always finite, -9999 at least."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens at this position with their log-probabilities, likeliest first."""


@dataclass(frozen=True, slots=True)
class FeatureReading:
    """One dictionary's activations at one position, before the edits made there. All numbers are finite."""

    top: tuple[tuple[int, float], ...]
    """The strongest active features with their activations, strongest first."""
    watch: tuple[float, ...]
    """Activations of the requested features, in the order of the request."""
    skipped: SkipReason | None = None
    """Why the dictionary does not read this token; dictionaries are trained without special tokens and sinks."""
    edited: tuple[tuple[int, float], ...] = ()
    """Features whose activations edits changed, with the activations after the edits."""


@dataclass(frozen=True, slots=True)
class TokenReadings:
    """A token with the readings that belong to it."""

    token_id: int
    position: int
    """Position that was read: a prompt token's own, or the one before a generated token, where it was chosen."""
    readings: Mapping[str, FeatureReading]
    """Reading of each dictionary, by dictionary id."""


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """What one step added to one sample."""

    text: str
    """New text that is final: never half a character, never the start of a possible stop string. May be empty."""
    token_ids: tuple[int, ...] = ()
    """Tokens generated since the last event, without an end-of-sequence token."""
    logprobs: tuple[LogprobEntry, ...] = ()
    """One entry for each of `token_ids`, if requested."""
    features: tuple[TokenReadings, ...] = ()
    """One entry for each of `token_ids`, if requested."""
    token_texts: tuple[str, ...] = ()
    """The text each of `token_ids` added when decoded in order; their concatenation is the whole text before stops."""
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    """Number of prompt tokens whose keys and values came from another sequence."""
    num_generated_tokens: int = 0
    """Number of all generated tokens so far, an end-of-sequence token included."""
    finish_reason: FinishReason | None = None
    """Why the sample ended. Set on its last event only."""
    stop_reason: str | int | None = None
    """The stop string or stop token id that ended the sample."""
    prompt_logprobs: tuple[LogprobEntry | None, ...] | None = None
    """On the first event, if requested: an entry for each prompt token, None for the first."""
    prompt_features: tuple[TokenReadings, ...] | None = None
    """On the first event, if requested: an entry for each prompt token."""
    receipt: SteeringReceipt | None = None
    """On the last event of a steered request: what steering did."""


class Phase(enum.Enum):
    """How far a sequence has come."""

    WAITING = "waiting"
    PREFILL = "prefill"
    DECODE = "decode"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class EngineStats:
    """The current counters of an engine."""

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
    """Share of all cache columns that running sequences fill."""
