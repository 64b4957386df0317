"""Choosing the next token of each row, from that row's own parameters and its own noise.

Noise is Gumbel noise over the whole vocabulary, drawn from a generator keyed by (seed, sample index, position): a row's
choice does not depend on its neighbours, and two requests of one seed draw the same noise at the same position.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from steerserve.engine.request import LogprobEntry

if TYPE_CHECKING:
    from collections.abc import Sequence as Rows

    from jaxtyping import Float
    from torch import Tensor

    from steerserve.engine.sequence import Sequence

_FIRST_CANDIDATES = 1024
"""Number of likeliest tokens that nucleus sampling looks at first; it sorts all only if these do not suffice."""
_MIN_TEMPERATURE = 1e-6
LOGPROB_FLOOR = -9999.0


@dataclass(frozen=True, slots=True)
class Choice:
    """A chosen token."""

    token_id: int | None
    """The token; None if the row's logits are not finite."""
    logprob: LogprobEntry | None = None


def choose(logits: Float[Tensor, "rows vocab"], sequences: Rows[Sequence]) -> list[Choice]:
    """Choose a token for each row of logits."""
    best_values, best_ids = logits.max(dim=-1)
    is_finite = torch.isfinite(best_values).tolist()
    greedy = best_ids.tolist()
    choices = []
    for row, sequence in enumerate(sequences):
        if not is_finite[row]:
            choices.append(Choice(None))
            continue
        token_id = greedy[row]
        if not _is_plain_greedy(sequence):
            token_id = _choose_row(logits[row], sequence)
        num_top = sequence.request.sampling.num_logprobs
        logprob = None if num_top is None else read_logprob(logits[row].log_softmax(-1), token_id, num_top)
        choices.append(Choice(token_id, logprob))
    return choices


def read_logprob(logprobs: Float[Tensor, " vocab"], token_id: int, num_top: int) -> LogprobEntry:
    """Return the log-probabilities of a token and of the likeliest, with a floor, as JSON has no infinity."""
    values, ids = logprobs.topk(min(num_top, logprobs.shape[0])) if num_top else (logprobs[:0], logprobs[:0])
    top = tuple(
        (int(likely_id), max(value, LOGPROB_FLOOR))
        for likely_id, value in zip(ids.tolist(), values.tolist(), strict=True)
    )
    return LogprobEntry(token_id, max(float(logprobs[token_id]), LOGPROB_FLOOR), top)


def gumbel_noise(num: int, seed: int, sample_index: int, position: int, device: torch.device) -> Tensor:
    """Return standard Gumbel noise `[num]` of a seed, sample and position, the same on every call."""
    key = hashlib.blake2b(f"{seed}:{sample_index}:{position}".encode(), digest_size=8).digest()
    generator = torch.Generator(device=device)
    generator.manual_seed(int.from_bytes(key, "little") >> 1)
    noise = torch.empty(num, device=device).exponential_(generator=generator)
    return noise.clamp_(min=torch.finfo(torch.float32).tiny).log_().neg_()


def _is_plain_greedy(sequence: Sequence) -> bool:
    sampling = sequence.request.sampling
    return (
        sampling.temperature == 0
        and not sampling.logit_bias
        and not _has_penalty(sequence)
        and (sequence.can_end() or not sequence.ending_ids())
    )


def _has_penalty(sequence: Sequence) -> bool:
    sampling = sequence.request.sampling
    return bool(sampling.presence_penalty or sampling.frequency_penalty or sampling.repetition_penalty != 1)


def _choose_row(logits: Float[Tensor, " vocab"], sequence: Sequence) -> int:
    sampling = sequence.request.sampling
    adjusted = _adjust(logits.float(), sequence)
    if sampling.temperature == 0:
        return int(adjusted.argmax())
    # Shifted so that the largest is 0: dividing by a tiny temperature then overflows to minus infinity only.
    scaled = (adjusted - adjusted.max()) / max(sampling.temperature, _MIN_TEMPERATURE)
    noise = gumbel_noise(
        scaled.shape[0], sampling.seed, sequence.request.sample_index, len(sequence.generated), scaled.device
    )
    if sampling.top_k == 0 and sampling.top_p >= 1 and sampling.min_p == 0:
        return int((scaled + noise).argmax())
    values, ids = _candidates(scaled, sampling.top_k, sampling.top_p)
    if sampling.min_p > 0:
        values = values.masked_fill(values < values[0] + math.log(sampling.min_p), -math.inf)
    return int(ids[(values + noise[ids]).argmax()])


def _candidates(scaled: Float[Tensor, " vocab"], top_k: int, top_p: float) -> tuple[Tensor, Tensor]:
    """Return values and ids after top-k and then top-p, largest first; dropped ones have the value minus infinity."""
    num_vocab = scaled.shape[0]
    first = min(num_vocab, top_k or _FIRST_CANDIDATES)
    values, ids = scaled.topk(first)
    if top_p >= 1:
        return (values, ids) if top_k else scaled.sort(descending=True)
    total = (values if top_k else scaled).logsumexp(-1)
    before = (values - total).exp().cumsum(-1)
    if not top_k and first < num_vocab and before[-1] < top_p:
        values, ids = scaled.sort(descending=True)
        before = (values - total).exp().cumsum(-1)
    before = before.roll(1)
    before[0] = 0.0
    return values.masked_fill(before >= top_p, -math.inf), ids


def _adjust(logits: Float[Tensor, " vocab"], sequence: Sequence) -> Float[Tensor, " vocab"]:
    """Apply bias, penalties and the minimum length.

    Source: OpenAI's API reference (frequency and presence penalty); Keskar et al. 2019, CTRL, section 4.1 (repetition).
    """
    sampling = sequence.request.sampling
    logits = logits.clone()
    if _has_penalty(sequence):
        counts, prompt_seen = _token_counts(sequence, logits)
        if sampling.repetition_penalty != 1:
            seen = prompt_seen | (counts > 0)
            penalty = sampling.repetition_penalty
            logits = torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
        logits -= sampling.frequency_penalty * counts + sampling.presence_penalty * (counts > 0)
    if sampling.logit_bias:
        if sequence.logit_bias is None:
            ids = torch.tensor(list(sampling.logit_bias), device=logits.device)
            sequence.logit_bias = ids, logits.new_tensor(list(sampling.logit_bias.values()))
        ids, biases = sequence.logit_bias
        logits[ids] += biases
    if not sequence.can_end() and (ending := sequence.ending_ids()):
        logits[torch.tensor(sorted(ending), device=logits.device)] = -math.inf
    return logits


def _token_counts(sequence: Sequence, logits: Tensor) -> tuple[Tensor, Tensor]:
    if sequence.token_counts is None or sequence.prompt_seen is None:
        sequence.token_counts = torch.zeros_like(logits)
        sequence.prompt_seen = torch.zeros_like(logits, dtype=torch.bool)
        sequence.prompt_seen[torch.tensor(sequence.prompt_ids, device=logits.device)] = True
    elif sequence.generated:
        sequence.token_counts[sequence.generated[-1]] += 1
    return sequence.token_counts, sequence.prompt_seen
