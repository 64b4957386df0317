"""Which sequence lives in which slot, and what it may share. No torch: it decides, the runner moves the tensors.

Decoding sequences always hold slots `[0, num_decoding)`, so that a step reads the cache as one view. A slot keeps
its prompt's keys and values after its sequence has finished, and shares them with sequences of the same prefix:

    [0 .. num_decoding)            decoding, one row each
    [num_decoding .. num_slots)    prefilling, finished but still readable, or empty

Only what prefill computed is shared, in whole chunks of a fixed grid or as a whole prompt. A sequence then has the
same bits as if it had computed its whole prompt itself.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Protocol

from steerserve.engine.prefix_sharing import SlotRecord, WatchedPrompt, find_donor, will_share_more
from steerserve.engine.request import Phase

if TYPE_CHECKING:
    from torch import Tensor

    from steerserve.engine.sequence import Sequence
    from steerserve.steering.plan import PromptSums


class SlotMover(Protocol):
    """Moves keys and values between slots."""

    def copy(self, source: int, target: int, num_tokens: int) -> None:
        """Copy the first tokens of one slot to another."""

    def swap(self, first: int, second: int, num_tokens: int) -> None:
        """Exchange the first tokens of two slots."""


class Scheduler:
    """Waiting sequences, slots and prefix sharing. Engine thread only."""

    def __init__(self, num_slots: int, chunk: int, mover: SlotMover) -> None:
        """Schedule onto `num_slots` slots, prefilling in chunks of `chunk` tokens."""
        self.chunk = chunk
        self.waiting: deque[Sequence] = deque()
        self.prefilling: deque[Sequence] = deque()
        self.num_decoding = 0
        self.slots: list[SlotRecord | None] = [None] * num_slots
        self._mover = mover
        self._clock = 0

    @property
    def decoding(self) -> list[Sequence]:
        """The decoding sequences in slot order."""
        return [record.sequence for record in self.slots[: self.num_decoding] if record and record.sequence]

    @property
    def num_running(self) -> int:
        """Number of sequences that hold a slot."""
        return self.num_decoding + len(self.prefilling)

    @property
    def num_used_columns(self) -> int:
        """Number of cache columns that running sequences fill. Any thread."""
        return sum(record.num_used for record in list(self.slots) if record is not None and record.sequence is not None)

    def emptied(self) -> Scheduler:
        """Return a scheduler for the same slots, all of them empty."""
        return Scheduler(len(self.slots), self.chunk, self._mover)

    def admit(self) -> list[Sequence]:
        """Give slots to waiting sequences, first come first served; return those that got one.

        A sequence that can share a prompt being prefilled right now waits until that is done; later ones overtake it.
        """
        admitted = []
        for sequence in list(self.waiting):
            if self.num_running >= len(self.slots):
                break
            source, num_shared = find_donor(self.slots, sequence, self.chunk)
            if will_share_more(self.prefilling, sequence, num_shared, self.chunk):
                continue
            self.waiting.remove(sequence)
            self._give_slot(sequence, source, num_shared)
            admitted.append(sequence)
        return admitted

    def next_chunk(self) -> tuple[Sequence, int, int] | None:
        """Return a prefilling sequence and its next chunk `[start, stop)`; sequences take turns."""
        if not self.prefilling:
            return None
        sequence = self.prefilling[0]
        self.prefilling.rotate(-1)
        start = sequence.num_computed
        stop = min((start // self.chunk + 1) * self.chunk, len(sequence.prompt_ids))
        return sequence, start, stop

    def computed(self, sequence: Sequence, stop: int, last_logits: Tensor | None) -> None:
        """Record that the prompt is computed up to `stop`; `last_logits` is None unless that is the whole prompt."""
        sequence.num_computed = stop
        record = self._record(sequence)
        record.num_computed = record.num_used = stop
        record.last_logits = last_logits
        if last_logits is not None and sequence.watch_key is not None:
            record.watched = WatchedPrompt(sequence.watch_key, sequence.readings, tuple(sequence.prompt_features))
        if sequence.edits is not None and sequence.edits.touches_prompt:
            record.prompt_sums[stop] = sequence.edits.prompt_sums()

    def start_decoding(self, sequence: Sequence) -> None:
        """Move a sequence whose prompt is computed to the decoding ones."""
        self._exchange(sequence.slot, self.num_decoding)
        self.prefilling.remove(sequence)
        self.num_decoding += 1
        sequence.phase = Phase.DECODE

    def release(self, sequence: Sequence, *, keep: bool = True) -> None:
        """Remove the sequence from its slot or the queue; `keep` leaves its prompt for others to share."""
        if sequence in self.waiting:
            self.waiting.remove(sequence)
            return
        if sequence.slot < 0:
            return
        record = self._record(sequence)
        record.num_used = max(record.num_used, record.num_computed)
        if sequence in self.prefilling:
            self.prefilling.remove(sequence)
        else:
            self.num_decoding -= 1
            self._exchange(sequence.slot, self.num_decoding)
        record.sequence = None
        if record.watched is not None and record.watched.features:
            record.watched = None  # too large to keep for a request that may never come
        if not keep or not record.num_computed:
            self.slots[sequence.slot] = None
        sequence.slot = -1

    def shared_prompt_sums(self, sequence: Sequence) -> PromptSums | None:
        """Return what steering did to the prompt tokens that the sequence shares; None if it edited none of them."""
        return self._record(sequence).prompt_sums.get(sequence.num_cached)

    def _record(self, sequence: Sequence) -> SlotRecord:
        record = self.slots[sequence.slot]
        if record is None:
            message = "A sequence holds a slot without a record."
            raise RuntimeError(message)
        return record

    def _give_slot(self, sequence: Sequence, source: int, num_shared: int) -> None:
        self._clock += 1
        free = [slot for slot in range(self.num_decoding, len(self.slots)) if self._is_free(slot)]
        target = min(free, key=self._age)
        donor = self.slots[source] if num_shared else None
        if donor is not None:
            donor.last_use = self._clock
            if source != target:
                self._mover.copy(source, target, num_shared)
        is_whole = num_shared == len(sequence.prompt_ids)
        self.slots[target] = SlotRecord(
            prompt_ids=sequence.prompt_ids,
            prompt_key=sequence.prompt_key,
            num_computed=num_shared,
            num_used=num_shared,
            last_logits=donor.last_logits if donor is not None and is_whole else None,
            watched=donor.watched if donor is not None and is_whole else None,
            prompt_sums=dict(donor.prompt_sums) if donor is not None else {},
            sequence=sequence,
            last_use=self._clock,
        )
        sequence.slot = target
        if is_whole and donor is not None and donor.watched is not None:
            sequence.readings, sequence.prompt_features = donor.watched.readings, [*donor.watched.features]
        sequence.num_computed = sequence.num_cached = num_shared
        sequence.phase = Phase.PREFILL
        self.prefilling.append(sequence)

    def _is_free(self, slot: int) -> bool:
        record = self.slots[slot]
        return record is None or record.sequence is None

    def _age(self, slot: int) -> int:
        record = self.slots[slot]
        return -1 if record is None else record.last_use

    def _exchange(self, first: int, second: int) -> None:
        """Swap two slots, with their records and tensors."""
        if first == second:
            return
        records = self.slots[first], self.slots[second]
        used = [record.num_used if record is not None else 0 for record in records]
        if used[1] == 0:
            self._mover.copy(first, second, used[0])
        elif used[0] == 0:
            self._mover.copy(second, first, used[1])
        else:
            self._mover.swap(first, second, max(used))
        self.slots[second], self.slots[first] = records
        for slot in (first, second):
            record = self.slots[slot]
            if record is not None and record.sequence is not None:
                record.sequence.slot = slot
