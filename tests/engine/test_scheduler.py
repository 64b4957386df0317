"""Slots and prefix sharing, against a model of memory in which each column says which tokens it stands for."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steerserve.engine.request import GenerationRequest, Phase, SamplingParams
from steerserve.engine.scheduler import Scheduler
from steerserve.engine.sequence import Sequence
from steerserve.model.tokenizer import Tokenizer
from tests.tiny import byte_tokenizer

if TYPE_CHECKING:
    from steerserve.engine.request import TokenEvent

CONTEXT = 24
Column = tuple[object, ...]
"""Keys and values depend on all tokens so far, and on what edits did to the prompt's."""

TOKENIZER = Tokenizer(byte_tokenizer(), frozenset())


def sequence_of(prompt: tuple[int, ...], key: str | None = None, *, reads_prompt: bool = False) -> Sequence:
    sampling = SamplingParams(max_tokens=4, num_prompt_logprobs=1 if reads_prompt else None)
    events: list[TokenEvent | Exception] = []
    sequence = Sequence(GenerationRequest("test", prompt, sampling), TOKENIZER, events.append)
    sequence.prompt_key = key
    return sequence


class Memory:
    """Moves lists where the cache moves tensors."""

    def __init__(self, num_slots: int) -> None:
        self.slots: list[list[Column | None]] = [[None] * CONTEXT for _ in range(num_slots)]

    def copy(self, source: int, target: int, num_tokens: int) -> None:
        assert 0 < num_tokens <= CONTEXT or num_tokens == 0
        self.slots[target][:num_tokens] = self.slots[source][:num_tokens]

    def swap(self, first: int, second: int, num_tokens: int) -> None:
        one, two = self.slots[first], self.slots[second]
        one[:num_tokens], two[:num_tokens] = two[:num_tokens], one[:num_tokens]


def column(sequence: Sequence, place: int) -> Column:
    prompt = sequence.prompt_ids
    if place < len(prompt):
        return (sequence.prompt_key, *prompt[: place + 1])
    return (sequence.prompt_key, *prompt, "then", id(sequence), *sequence.generated[: place + 1 - len(prompt)])


class World:
    """Does what the engine does with a scheduler, and checks memory at every read."""

    def __init__(self, num_slots: int, chunk: int) -> None:
        self.memory = Memory(num_slots)
        self.scheduler = Scheduler(num_slots, chunk, self.memory)
        self.all: list[Sequence] = []
        self.num_done = 0

    def submit(self, sequence: Sequence) -> None:
        self.all.append(sequence)
        self.scheduler.waiting.append(sequence)

    def step(self, num_chunks: int = 1) -> None:
        self.scheduler.admit()
        self.check()
        for _ in range(num_chunks):
            if (found := self.scheduler.next_chunk()) is not None:
                self.prefill(*found)
                self.check()
        self.decode()
        self.check()

    def prefill(self, sequence: Sequence, start: int, stop: int) -> None:
        prompt = sequence.prompt_ids
        self.check_columns(sequence, start)
        if start == len(prompt):
            record = self.scheduler.slots[sequence.slot]
            assert record is not None
            logits = cast("Any", record.last_logits)
        else:
            assert start < stop <= len(prompt)
            assert stop == len(prompt) or stop % self.scheduler.chunk == 0, "chunks must lie on the grid"
            for place in range(start, stop):
                self.memory.slots[sequence.slot][place] = column(sequence, place)
            logits = cast("Any", (sequence.prompt_key, prompt) if stop == len(prompt) else None)
            self.scheduler.computed(sequence, stop, logits)
        if logits is None:
            return
        assert logits == (sequence.prompt_key, prompt), "logits after another prompt"
        self.scheduler.start_decoding(sequence)
        self.append(sequence)

    def decode(self) -> None:
        decoding = self.scheduler.decoding
        for row, sequence in enumerate(decoding):
            assert sequence.slot == row
            self.check_columns(sequence, sequence.position)
            self.memory.slots[row][sequence.position] = column(sequence, sequence.position)
        for sequence in decoding:
            self.append(sequence)

    def append(self, sequence: Sequence) -> None:
        sequence.generated.append(random.Random(len(sequence.generated)).randrange(99))
        record = self.scheduler.slots[sequence.slot]
        assert record is not None
        record.num_used = sequence.position + 1
        is_full = len(sequence.prompt_ids) + len(sequence.generated) >= CONTEXT
        if is_full or len(sequence.generated) >= sequence.request.sampling.max_tokens:
            self.end(sequence)

    def end(self, sequence: Sequence, *, keep: bool = True) -> None:
        self.scheduler.release(sequence, keep=keep)
        sequence.phase = Phase.FINISHED
        self.num_done += 1

    def check_columns(self, sequence: Sequence, num: int) -> None:
        found = self.memory.slots[sequence.slot][:num]
        assert found == [column(sequence, place) for place in range(num)], "a sequence reads another's columns"

    def check(self) -> None:
        scheduler = self.scheduler
        holders = [r.sequence if r is not None else None for r in scheduler.slots]
        assert all(holder is not None and holder.phase is Phase.DECODE for holder in holders[: scheduler.num_decoding])
        rest = [holder for holder in holders[scheduler.num_decoding :] if holder is not None]
        assert set(map(id, rest)) == set(map(id, scheduler.prefilling))
        for slot, holder in enumerate(holders):
            assert holder is None or holder.slot == slot
        # Whatever a slot offers to others really is there, also after its sequence has gone.
        for slot, record in enumerate(scheduler.slots):
            if record is not None:
                expected = [(record.prompt_key, *record.prompt_ids[: n + 1]) for n in range(record.num_computed)]
                assert self.memory.slots[slot][: record.num_computed] == expected, "a slot offers what it has not"
                logits = cast("Any", record.last_logits)
                assert logits is None or logits == (record.prompt_key, record.prompt_ids)

    def finish(self) -> None:
        for _ in range(1000):
            if self.num_done == len(self.all):
                return
            self.step()
        pytest.fail("sequences are left waiting for ever")


PROMPTS = st.builds(
    lambda shared, rest: (*([1] * shared), *rest),
    st.integers(0, 14),
    st.lists(st.integers(1, 2), min_size=1, max_size=8),
).filter(lambda prompt: len(prompt) < CONTEXT)
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), PROMPTS, st.sampled_from([None, None, "a"]), st.booleans()),
        st.tuples(st.just("step"), st.integers(0, 3)),
        st.tuples(st.just("release"), st.integers(0, 40), st.booleans()),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(actions=ACTIONS, num_slots=st.integers(1, 6), chunk=st.integers(1, 6))
def test_every_sequence_always_reads_its_own_tokens(actions: list[tuple[Any, ...]], num_slots: int, chunk: int) -> None:
    world = World(num_slots, chunk)
    for action, *what in actions:
        if action == "submit":
            world.submit(sequence_of(what[0], what[1], reads_prompt=what[2] and what[0][0] == 2))
        elif action == "step":
            world.step(what[0])
        elif what[0] < len(world.all) and world.all[what[0]].phase is not Phase.FINISHED:
            world.end(world.all[what[0]], keep=what[1])
        world.check()
    world.finish()


def test_a_finished_prompt_is_shared_whole() -> None:
    world = World(2, 4)
    world.submit(sequence_of((1,) * 10))
    world.finish()
    world.submit(sequence_of((1,) * 10))
    world.finish()
    assert world.all[1].num_cached == 10


def test_a_common_beginning_is_shared_in_whole_chunks() -> None:
    world = World(2, 4)
    world.submit(sequence_of((1,) * 10))
    world.finish()
    world.submit(sequence_of((1,) * 9 + (2, 2)))
    world.finish()
    assert world.all[1].num_cached == 8


def test_a_prompt_whose_logprobs_are_wanted_shares_nothing() -> None:
    world = World(2, 4)
    world.submit(sequence_of((1,) * 10))
    world.finish()
    world.submit(sequence_of((1,) * 10, reads_prompt=True))
    world.finish()
    assert world.all[1].num_cached == 0


def test_edits_of_the_prompt_keep_it_from_being_shared() -> None:
    world = World(3, 4)
    for key in (None, "a", "b", "a"):
        world.submit(sequence_of((1,) * 10, key))
        world.finish()
    assert [sequence.num_cached for sequence in world.all] == [0, 0, 0, 10]


def test_a_request_that_cannot_share_overtakes_those_that_wait_to() -> None:
    world = World(3, 4)
    for prompt in ((1,) * 12, (1,) * 12, (2,) * 3):
        world.submit(sequence_of(prompt))
    world.step()
    assert [sequence.phase for sequence in world.all[:2]] == [Phase.PREFILL, Phase.WAITING]
    assert world.all[2].phase is not Phase.WAITING
    world.finish()


def test_the_slot_unused_for_longest_is_given_away_first() -> None:
    world = World(2, 4)
    for prompt in ((1,) * 8, (2,) * 8, (1,) * 8, (3,) * 8, (1,) * 8):
        world.submit(sequence_of(prompt))
        world.finish()
    assert [sequence.num_cached for sequence in world.all] == [0, 0, 8, 0, 8]


def test_prompts_take_turns_chunk_by_chunk() -> None:
    world = World(2, 4)
    world.submit(sequence_of((1,) * 20))
    world.submit(sequence_of((2,) * 4))
    world.scheduler.admit()
    first = world.scheduler.next_chunk()
    second = world.scheduler.next_chunk()
    assert first is not None
    assert second is not None
    assert (first[0], *first[1:]) == (world.all[0], 0, 4)
    assert (second[0], *second[1:]) == (world.all[1], 0, 4)


def test_what_failed_is_never_shared() -> None:
    world = World(2, 4)
    world.submit(sequence_of((1,) * 10))
    world.scheduler.admit()
    found = world.scheduler.next_chunk()
    assert found is not None
    world.prefill(*found)
    world.end(world.all[0], keep=False)
    world.submit(sequence_of((1,) * 10))
    world.finish()
    assert world.all[1].num_cached == 0
