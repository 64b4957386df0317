"""Which computed prompt a sequence may reuse: the same first tokens under the same prompt key.

The prompt key names the edits of prompt tokens and the contents they use (`ResolvedSteering.prompt_key`), so sequences
that edit only generated tokens share prompts with unsteered ones. Whole chunks, or whole prompts, are shared. No torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from steerserve.engine.request import TokenReadings
    from steerserve.engine.sequence import Sequence
    from steerserve.engine.watching import Readings
    from steerserve.steering.plan import PromptSums


@dataclass(slots=True)
class SlotRecord:
    """The tokens whose keys and values are in a slot."""

    prompt_ids: tuple[int, ...]
    prompt_key: str | None
    """Name of what is done to the prompt's tokens; None if nothing is."""
    num_computed: int = 0
    num_used: int = 0
    """Number of columns in use, generated tokens included."""
    last_logits: Tensor | None = None
    """Logits after the whole prompt; None until it is computed."""
    watched: WatchedPrompt | None = None
    """Readings of the prompt, if its sequence was watched."""
    prompt_sums: dict[int, PromptSums] = field(default_factory=dict)
    """What steering did to the first tokens of the prompt, by their number, if it edits the prompt."""
    sequence: Sequence | None = None
    last_use: int = 0


@dataclass(frozen=True, slots=True)
class WatchedPrompt:
    """Readings of a whole prompt, for sequences with the same watch."""

    key: str
    readings: Readings
    """Readings at the last token."""
    features: tuple[TokenReadings, ...]
    """Readings at all of its tokens, if the watch includes the prompt."""


def find_donor(slots: Iterable[SlotRecord | None], sequence: Sequence, chunk: int) -> tuple[int, int]:
    """Return the slot to share from and the number of shared tokens; (-1, 0) if no slot shares a prefix."""
    best = (-1, 0)
    if sequence.request.sampling.num_prompt_logprobs is not None:
        return best  # the logits of every prompt token are requested, so every token is computed
    reads_all = sequence.request.watch is not None and sequence.request.watch.prompt
    for slot, record in enumerate(slots):
        if record is None or record.prompt_key != sequence.prompt_key:
            continue
        watched_key = record.watched.key if record.watched is not None else None
        is_whole = record.last_logits is not None and record.prompt_ids == sequence.prompt_ids
        if is_whole and sequence.watch_key in {None, watched_key}:
            return slot, len(sequence.prompt_ids)
        if reads_all:
            continue  # every prompt token is read, so every token is computed
        shared = _shared_chunks(sequence, record.prompt_ids, record.num_computed, chunk)
        if shared > best[1]:
            best = (slot, shared)
    return best


def will_share_more(prefilling: Iterable[Sequence], sequence: Sequence, num_shared: int, chunk: int) -> bool:
    """Return whether a prompt that is being computed will soon share more than `num_shared` tokens."""
    if sequence.request.sampling.num_prompt_logprobs is not None:
        return False
    reads_all = sequence.request.watch is not None and sequence.request.watch.prompt
    for other in prefilling:
        if other.prompt_key != sequence.prompt_key:
            continue
        is_same = other.prompt_ids == sequence.prompt_ids and sequence.watch_key in {None, other.watch_key}
        if is_same and num_shared < len(sequence.prompt_ids):
            return True
        if reads_all:
            continue
        if _shared_chunks(sequence, other.prompt_ids, len(other.prompt_ids), chunk) > num_shared:
            return True
    return False


def _shared_chunks(sequence: Sequence, other_ids: tuple[int, ...], num_valid: int, chunk: int) -> int:
    """Return the length of the shared prefix in whole chunks, leaving at least one token to compute."""
    mine = sequence.prompt_ids
    limit = min(len(mine) - 1, num_valid) // chunk * chunk
    shared = 0
    while shared < limit and mine[shared : shared + chunk] == other_ids[shared : shared + chunk]:
        shared += chunk
    return shared
