"""What watched tokens carry is what SAELens encodes there, and watching changes nothing else."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from steerserve.engine.request import Watch
from tests.engine.harness import Stepper, ask, fresh_engine
from tests.engine.test_isolation import REQUESTS, alone
from tests.tiny import D_MODEL

if TYPE_CHECKING:
    from collections.abc import Sequence

    from steerserve.engine.request import FeatureReading, GenerationRequest, TokenEvent, TokenReadings
    from steerserve.engine.slot_engine import SlotEngine
    from steerserve.runtime import Runtime
    from tests.engine.gated_oracle import GatedOracle

PROMPT = "<|im_start|>user\nTell me ~ about it, please.<|im_end|>\nwell"
NUM_TOKENS = 6
VECTOR = [(-1.0) ** place * (1 + place / 20) for place in range(D_MODEL)]
STEERINGS: dict[str, Any] = {
    "none": None,
    "one": [{"feature": 3, "mode": "clamp", "scale": 12.0}],
    "every place": [
        {"feature": 3, "scale": 4.0, "positions": "generated", "ramp": 3},
        {"feature": 4, "mode": "ablate", "dictionary": "topk"},
        {"feature": 5, "mode": "multiply", "scale": 2.0, "dictionary": "gated", "positions": "prompt"},
        {"feature": 6, "mode": "floor", "scale": 3.0, "dictionary": "tc-skip"},
        {"feature": 7, "mode": "ceiling", "scale": 0.1, "dictionary": "late", "when": {"feature": 5, "above": 0.2}},
        {"vector": {"hook": "blocks.0.hook_resid_mid", "values": VECTOR}, "scale": 0.5},
    ],
    "twice the same": {"edits": [{"feature": 3, "scale": 2.0}, {"feature": 3, "scale": 1.5}], "strength": 0.5},
}


def watch_of(runtime: Runtime, *names: str, **fields: Any) -> Watch:  # noqa: ANN401 any of Watch
    snapshot = runtime.registry.snapshot()
    return Watch(tuple(snapshot.find(name, "") for name in names), **{"top": 8, **fields})


def run_watched(engine: SlotEngine, *requests: GenerationRequest) -> list[list[TokenEvent]]:
    """Step an engine that was not started until all is done."""
    stepper = Stepper(engine)
    stepper.submit(*requests)
    stepper.finish()
    for place in range(len(requests)):
        stepper.answer(place)
    return stepper.events  # type: ignore[return-value]


def generated(events: Sequence[TokenEvent]) -> list[TokenReadings]:
    return [entry for event in events for entry in event.features]


def of_prompt(events: Sequence[TokenEvent]) -> list[TokenReadings]:
    assert all(event.prompt_features is None for event in events[1:])
    return list(events[0].prompt_features or ())


def close(one: Sequence[TokenReadings], other: Sequence[TokenReadings]) -> bool:
    """Return whether the entries of two answers say the same; rows of another batch are summed in another order."""
    assert [(entry.token_id, entry.position) for entry in one] == [(entry.token_id, entry.position) for entry in other]
    for mine, its in zip(one, other, strict=True):
        assert mine.readings.keys() == its.readings.keys()
        for name, reading in mine.readings.items():
            assert reading.skipped == its.readings[name].skipped
            assert reading.watch == pytest.approx(its.readings[name].watch, abs=1e-4)
            assert dict(reading.top) == pytest.approx(dict(its.readings[name].top), abs=1e-4)
            assert dict(reading.edited) == pytest.approx(dict(its.readings[name].edited), abs=1e-4)
    return True


class Expected:
    """What the oracle says of every position of a text."""

    def __init__(self, oracle: GatedOracle, ids: Sequence[int], num_prompt: int, steering: Any) -> None:  # noqa: ANN401 any spelling
        self.oracle, self.ids = oracle, ids
        full = steering if isinstance(steering, dict) else {"edits": steering or []}
        edits: list[dict[str, Any]] = full["edits"]
        metadata = [sae.cfg.metadata for sae in oracle.saes.values()]
        names = {name for one in metadata for name in (one.hook_name, one.hook_name_out) if name}
        nothing = {"vector": {"hook": "blocks.1.hook_resid_post", "values": [0.0] * D_MODEL}}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(oracle, "_read_hook_names", lambda _: names)  # whatever the edits go by
            oracle.logits(ids, num_prompt, {**full, "edits": [*edits, nothing]})
        self.seen = oracle.seen

    def acts(self, name: str) -> torch.Tensor:
        sae = self.oracle.saes[name]
        x = self.seen[sae.cfg.metadata.hook_name]
        heads = x.unflatten(-1, (4, -1)) if sae.cfg.reshape_activations == "hook_z" else x
        with torch.no_grad():
            encoded: torch.Tensor = sae.encode(heads)
        return encoded

    def skipped(self, name: str, position: int) -> str | None:
        metadata = self.oracle.saes[name].cfg.metadata
        x = self.seen[metadata.hook_name_out or metadata.hook_name]
        if self.ids[position] in self.oracle.special:
            return "special"
        return "sink" if float(x[position].norm()) > 5 * self.oracle.median_norms[name] else None


def check(reading: FeatureReading, acts: torch.Tensor, skipped: str | None, features: Sequence[int], top: int) -> None:
    assert reading.skipped == skipped
    if skipped is not None:
        assert (reading.top, reading.watch) == ((), (0.0,) * len(features))
        return
    assert reading.watch == pytest.approx(acts[list(features)].tolist(), abs=1e-4)
    strongest = [value for value in acts.topk(min(top, len(acts))).values.tolist() if value > 0]
    assert [act for _, act in reading.top] == pytest.approx(strongest, abs=1e-4)
    assert [act for _, act in reading.top] == pytest.approx([float(acts[one]) for one, _ in reading.top], abs=1e-4)


@pytest.mark.parametrize("steering", STEERINGS.values(), ids=STEERINGS)
@pytest.mark.parametrize("chunk", [16, 7])
def test_a_token_carries_what_saelens_encodes_where_it_was_chosen(
    transcoding: Runtime, gated_oracle: GatedOracle, steering: object, chunk: int
) -> None:
    watch = watch_of(transcoding, *gated_oracle.saes, top=5, features=(3, 15), prompt=True)
    request = replace(ask(transcoding, PROMPT, steering, max_tokens=NUM_TOKENS), watch=watch)
    with fresh_engine(transcoding, chunk=chunk, start=False) as engine:
        [events] = run_watched(engine, request)
    tokens, prompt = generated(events), of_prompt(events)
    num_prompt = len(request.prompt_ids)
    assert [entry.token_id for entry in prompt] == list(request.prompt_ids)
    assert [entry.position for entry in prompt] == list(range(num_prompt))
    assert [entry.token_id for entry in tokens] == [one for event in events for one in event.token_ids]
    assert [entry.position for entry in tokens] == list(range(num_prompt - 1, num_prompt + NUM_TOKENS - 1))
    ids = [*request.prompt_ids, *(entry.token_id for entry in tokens)]
    expected = Expected(gated_oracle, ids, num_prompt, steering)
    for name in gated_oracle.saes:
        acts = expected.acts(name)
        for entry in [*prompt, *tokens]:
            at = entry.position
            check(entry.readings[name], acts[at], expected.skipped(name, at), watch.features, watch.top)
    assert {"special", "sink", None} <= {entry.readings["standard"].skipped for entry in prompt}


def edited_of(entries: Sequence[TokenReadings], name: str) -> list[dict[int, float]]:
    return [dict(entry.readings[name].edited) for entry in entries]


def test_what_an_edit_changed_is_given_as_it_is_after_that(transcoding: Runtime, gated_oracle: GatedOracle) -> None:
    steering = STEERINGS["every place"]
    names = ("standard", "topk", "gated", "tc-skip", "late", "planted")
    watch = watch_of(transcoding, *names, prompt=True)
    request = replace(ask(transcoding, PROMPT, steering, max_tokens=NUM_TOKENS), watch=watch)
    with fresh_engine(transcoding, start=False) as engine:
        [events] = run_watched(engine, request)
    tokens, prompt = generated(events), of_prompt(events)
    num_prompt = len(request.prompt_ids)
    ids = [*request.prompt_ids, *(entry.token_id for entry in tokens)]
    expected = Expected(gated_oracle, ids, num_prompt, steering)
    acts = {name: expected.acts(name) for name in names}
    for entry in [*prompt, *tokens[1:]]:
        at = entry.position
        index = at - num_prompt
        wanted: dict[str, dict[int, float]] = {name: {} for name in names}
        if index >= 0:
            wanted["standard"] = {3: float(acts["standard"][at, 3]) + 4.0 * min(1.0, (index + 1) / 3)}
        if acts["topk"][at, 4] != 0:
            wanted["topk"] = {4: 0.0}
        if index < 0 and acts["gated"][at, 5] != 0:
            wanted["gated"] = {5: 2 * float(acts["gated"][at, 5])}
        if acts["tc-skip"][at, 6] < 3.0:
            wanted["tc-skip"] = {6: 3.0}
        if acts["standard"][at, 5] > 0.2 and acts["late"][at, 7] > 0.1:
            wanted["late"] = {7: 0.1}
        for name in names:
            its = wanted[name] if expected.skipped(name, at) is None else {}
            assert dict(entry.readings[name].edited) == pytest.approx(its, abs=1e-4), (name, at)
    assert edited_of(tokens[:1], "standard") == [{}]  # read at the prompt's last token, which is not edited
    assert any(edited_of(prompt, "tc-skip"))
    assert any(edited_of([*prompt, *tokens], "late"))


def test_a_clamped_feature_is_exactly_what_it_was_clamped_to_and_edits_of_one_feature_add_up(llama: Runtime) -> None:
    watch = watch_of(llama, "standard", "late", features=(3,))
    clamped = replace(ask(llama, "hello", STEERINGS["one"]), watch=watch)
    twice = replace(ask(llama, "hello", STEERINGS["twice the same"]), watch=watch)
    removed = replace(ask(llama, "hello", [{"feature": 3, "mode": "remove"}]), watch=watch)
    with fresh_engine(llama, start=False) as engine:
        first, second, third = run_watched(engine, clamped, twice, removed)
    assert edited_of(generated(first), "late") == [{}] * 8
    for entry in generated(first):
        assert dict(entry.readings["standard"].edited) == pytest.approx({3: 12.0}, abs=1e-6)
    for entry in generated(second):
        assert dict(entry.readings["standard"].edited) == pytest.approx(
            {3: entry.readings["standard"].watch[0] + 1.75}, abs=1e-4
        )
    assert edited_of(generated(third), "standard") == [{}] * 8


def test_an_edit_of_a_special_token_or_a_sink_is_told_though_neither_is_read(llama: Runtime) -> None:
    steering = [{"feature": 3, "mode": "clamp", "scale": 5.0, "special_tokens": True}]
    request = replace(ask(llama, "<|im_start|>a~"), watch=watch_of(llama, "standard", prompt=True, features=(3,)))
    steered = replace(request, steering=llama.resolve_steering(steering))
    with fresh_engine(llama, start=False) as engine:
        plain, edited = (of_prompt(events) for events in run_watched(engine, request, steered))
    assert [entry.readings["standard"].skipped for entry in edited] == ["special", None, "sink"]
    assert edited_of(plain, "standard") == [{}] * 3
    assert [entry.readings["standard"].watch for entry in (edited[0], edited[2])] == [(0.0,)] * 2
    for reading in edited_of(edited, "standard"):
        assert reading == pytest.approx({3: 5.0}, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "slots", "chunk"), [("llama", 1, 16), ("llama", 5, 16), ("llama", 16, 7), ("gpt2", 16, 16)]
)
def test_watching_changes_no_bit_of_any_request(
    request: pytest.FixtureRequest, model: str, slots: int, chunk: int
) -> None:
    runtime: Runtime = request.getfixturevalue(model)
    watches = [
        watch_of(runtime, "standard"),
        None,
        watch_of(runtime, "topk", "late", "mlp", "z", top=3, features=(1, 2, 3), prompt=True),
        watch_of(runtime, "heads", "standard", top=0, features=(7,)),
    ]
    requests = [
        replace(ask(runtime, prompt, steering, **sampling), watch=watches[place % len(watches)])
        for place, (prompt, steering, sampling) in enumerate(REQUESTS)
    ]
    with fresh_engine(runtime, slots=slots, chunk=chunk, start=False) as engine:
        stepper = Stepper(engine)
        stepper.submit(*requests)
        stepper.finish()
        for place, one in enumerate(requests):
            assert stepper.answer(place) == alone(runtime, place, chunk)
            entries = generated(stepper.events[place])  # type: ignore[arg-type]
            assert len(entries) == (len(stepper.answer(place).token_ids) if one.watch is not None else 0)
        together = [(of_prompt(events), generated(events)) for events in stepper.events]  # type: ignore[arg-type]
    for one, (prompt, tokens) in zip(requests, together, strict=True):
        with fresh_engine(runtime, slots=1, chunk=chunk, start=False) as engine:
            [events] = run_watched(engine, one)
        assert close(of_prompt(events), prompt)
        assert close(generated(events), tokens)


def test_without_a_watching_row_nothing_is_attached(llama: Runtime) -> None:
    with fresh_engine(llama, start=False) as engine:
        stepper = Stepper(engine)
        stepper.submit(ask(llama, "x", max_tokens=12))
        for _ in range(3):
            stepper.step()
            assert engine.runner._watch_plan is None
        stepper.submit(replace(ask(llama, "y", max_tokens=3), watch=watch_of(llama, "standard")))
        stepper.step()
        plan = engine.runner._watch_plan
        assert plan is not None
        assert [reader.tokens.tolist() for reader in plan.readers] == [[1]]
        stepper.finish()
        assert engine.runner._watch_plan is None


def cached(events: Sequence[TokenEvent]) -> int:
    return events[-1].num_cached_tokens


def test_a_prompt_that_was_shared_is_read_where_it_must_be(llama: Runtime) -> None:
    prompt = "A beginning that is shared by all of these requests, and long."
    plain = ask(llama, prompt, num_logprobs=3)
    num_prompt = len(plain.prompt_ids)
    watch = watch_of(llama, "standard", features=(3,))
    fresh, again, other, whole, last = (
        replace(plain, watch=one)
        for one in (
            watch,
            watch_of(llama, "standard", features=(3,)),
            watch_of(llama, "late"),
            replace(watch, prompt=True),
            None,
        )
    )
    with fresh_engine(llama, start=False) as engine:
        answers = [run_watched(engine, one)[0] for one in (plain, fresh, again, other, whole, whole, last)]
    chunks = (num_prompt - 1) // 16 * 16
    assert [cached(events) for events in answers] == [0, chunks, num_prompt, chunks, 0, 0, num_prompt]
    assert len({tuple(one for event in events for one in event.logprobs) for events in answers}) == 1
    assert generated(answers[1]) == generated(answers[2])
    assert close(generated(answers[1]), generated(answers[4]))
    assert of_prompt(answers[4]) == of_prompt(answers[5])
    assert of_prompt(answers[4])[-1].readings == generated(answers[4])[0].readings


@pytest.mark.parametrize("prompt", [False, True])
def test_samples_that_run_together_share_what_was_read_of_their_prompt(llama: Runtime, prompt: bool) -> None:
    watch = watch_of(llama, "standard", "topk", prompt=prompt)
    samples = [
        replace(ask(llama, PROMPT, temperature=1.0, seed=3, sample_index=index), watch=watch) for index in range(4)
    ]
    with fresh_engine(llama, start=False) as engine:
        together = run_watched(engine, *samples)
    num_prompt = len(samples[0].prompt_ids)
    assert [cached(events) for events in together] == [0, num_prompt, num_prompt, num_prompt]
    for sample, events in zip(samples, together, strict=True):
        with fresh_engine(llama, start=False) as engine:
            [alone_events] = run_watched(engine, sample)
        assert close(of_prompt(alone_events), of_prompt(events))
        assert close(generated(alone_events), generated(events))
    assert len({tuple(entry.token_id for entry in generated(events)) for events in together}) == 4


def test_prompts_that_differ_in_their_edits_share_nothing_that_was_read(llama: Runtime) -> None:
    watch = watch_of(llama, "late", prompt=True)
    requests = [
        replace(ask(llama, PROMPT, steering), watch=watch)
        for steering in (None, [{"feature": 3, "scale": 9.0}], [{"feature": 3, "scale": 9.0, "positions": "generated"}])
    ]
    with fresh_engine(llama, start=False) as engine:
        plain, edited, later = run_watched(engine, *requests)
    assert of_prompt(plain) == of_prompt(later)
    assert of_prompt(plain) != of_prompt(edited)


def test_a_request_that_only_reads_its_prompt_gives_its_entries(llama: Runtime) -> None:
    request = replace(ask(llama, PROMPT, max_tokens=0), watch=watch_of(llama, "standard", prompt=True))
    with fresh_engine(llama, start=False) as engine:
        [events] = run_watched(engine, request)
    assert len(of_prompt(events)) == len(request.prompt_ids)
    assert generated(events) == []


def test_a_row_that_leaves_takes_nothing_with_it_and_its_dictionary_is_let_go(llama: Runtime) -> None:
    found = llama.registry.snapshot().find("standard", "")
    mine = replace(found, id="mine")
    kept = weakref.ref(mine)
    leaving = replace(ask(llama, "leaving", max_tokens=50), watch=Watch((mine,), top=4))
    staying = replace(ask(llama, "staying", max_tokens=12), watch=watch_of(llama, "standard"))
    with fresh_engine(llama, start=False) as engine:
        stepper = Stepper(engine)
        stepper.submit(leaving, staying)
        for _ in range(4):
            stepper.step()
        stepper.abort(0)
        stepper.finish()
        assert engine.stats().num_running == 0
        entries = generated(stepper.events[1])  # type: ignore[arg-type]
        del leaving, mine
        stepper.sequences.clear()
        stepper.events.clear()
        gc.collect()
        assert kept() is None
        [events] = run_watched(engine, staying)
    assert close(generated(events), entries)


def test_a_feature_asked_for_twice_is_given_twice_and_more_than_there_are_gives_all(llama: Runtime) -> None:
    watch = watch_of(llama, "planted", "standard", top=64, features=(3, 3, 0))
    with fresh_engine(llama, start=False) as engine:
        [events] = run_watched(engine, replace(ask(llama, "abc"), watch=watch))
    for entry in generated(events):
        reading = entry.readings["planted"]
        if reading.skipped is None:
            assert reading.watch[0] == reading.watch[1]
            assert 0 < len(reading.top) <= 16
