"""Contrasts and differences of means through the engine, with a dictionary whose features are known."""

from __future__ import annotations

import asyncio
import copy
import random
import threading
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from steerserve.contrast import contrast as contrast_module
from steerserve.contrast.contrast import MAX_WAITING, contrast, pooled_activations, ready_steering
from steerserve.contrast.difference import difference_of_means
from steerserve.contrast.examples import EXAMPLE_SETS
from steerserve.contrast.separation import Candidate
from steerserve.contrast.text_sets import MAX_TOKENS, TextSets, read_text_sets
from steerserve.core.errors import ContextLengthError, InvalidRequestError, QueueFullError
from steerserve.core.observer import StoppedError
from steerserve.engine.readings import text_ids
from steerserve.model.tokenizer import Tokenizer
from steerserve.store.records import Calibration
from tests.conftest import SINK
from tests.engine.harness import ask, read
from tests.tiny import HOOK_NAME, byte_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable

    from steerserve.dictionaries.dictionary import Dictionary
    from steerserve.runtime import Runtime

LETTERS = "abcdefghijklmnop"


def find(runtime: Runtime, name: str) -> Dictionary:
    return next(one for one in runtime.dictionaries() if one.id == name)


def sets_of(runtime: Runtime, positive: list[str], negative: list[str]) -> TextSets:
    return read_text_sets(runtime.tokenizer, positive, negative, runtime.context_length)


def texts(num_texts: int, marks: str, seed: int) -> list[str]:
    """Write letters in any order, each text with one of the marks somewhere."""
    draw = random.Random(seed)
    written = []
    for _ in range(num_texts):
        letters = draw.choices(LETTERS, k=12)
        written.append("".join([*letters[:6], draw.choice(marks), *letters[6:]]))
    return written


def largest(runtime: Runtime, dictionary: Dictionary, text: str) -> torch.Tensor:
    """Return each feature's largest activation on a text, without the code under test."""
    ids = text_ids(runtime.tokenizer, text)

    def encode() -> torch.Tensor:
        x = runtime.lens.read(torch.tensor([ids]), [HOOK_NAME])[HOOK_NAME][0]
        keep = [place for place, token_id in enumerate(ids) if token_id not in {256, ord(SINK)}]
        return dictionary.encode(x[keep]).amax(0)

    return runtime.engine.run_exclusive(encode).result(timeout=60)


def plant(runtime: Runtime, letter: str, feature: int) -> Dictionary:
    """Return a random dictionary of which one feature has learned one character, from texts of its own."""
    ids = [
        text_ids(runtime.tokenizer, text)
        for seed, marks in ((90, letter), (91, LETTERS))
        for text in texts(20, marks, seed)
    ]
    x = runtime.engine.run_exclusive(lambda: runtime.lens.read(torch.tensor(ids), [HOOK_NAME])[HOOK_NAME])
    stream = x.result(timeout=60)[:, 1:].flatten(0, 1).double()
    is_letter = torch.tensor(ids)[:, 1:].flatten() == ord(letter)
    marked, others = stream[is_letter].mean(0), stream[~is_letter].mean(0)
    # What lies across the difference is no part of the feature: Fisher's discriminant.
    direction = torch.linalg.solve(stream[~is_letter].T.cov(), marked - others)
    direction = (direction / direction.norm()).float()
    middle = ((marked + others) / 2).float()
    dictionary = find(runtime, "standard")
    sae = copy.deepcopy(dictionary.sae)
    sae.W_enc.data[:, feature] = direction
    sae.b_enc.data[feature] = -direction @ (middle - sae.b_dec.data)
    return replace(dictionary, sae=sae)


async def test_the_feature_of_a_planted_character_is_found(llama: Runtime) -> None:
    dictionary = plant(llama, "Q", 77)
    sets = sets_of(llama, texts(24, "Q", seed=0), texts(24, LETTERS, seed=1))
    best = (await contrast(llama.engine, dictionary, sets, 5, llama.contrast_queue))[0]
    assert best.feature == 77
    assert best.auc > 0.85
    assert best.held_out_auc > 0.8
    assert best.p_value < 0.01


async def test_texts_of_one_kind_are_not_told_apart(llama: Runtime) -> None:
    rounds = []
    for seed in range(0, 16, 2):
        sets = sets_of(llama, texts(10, LETTERS, seed), texts(10, LETTERS, seed + 1))
        found = await contrast(llama.engine, find(llama, "standard"), sets, 5, llama.contrast_queue)
        rounds.append(np.mean([one.held_out_auc for one in found]))
    assert 0.35 < np.mean(rounds) < 0.65


async def test_a_texts_activations_are_the_largest_over_the_tokens_that_count(llama: Runtime) -> None:
    dictionary = find(llama, "topk")
    sets = sets_of(llama, ["one two", "x" * 60], ["three", "~four~"])
    pooled = await pooled_activations(llama.engine, dictionary, sets)
    for row, text in enumerate(["one two", "x" * 60, "three", "~four~"]):
        torch.testing.assert_close(
            torch.from_numpy(pooled[row]), largest(llama, dictionary, text), rtol=1e-3, atol=1e-3
        )


async def test_the_built_in_examples_can_be_read_by_a_model_that_knows_no_language(llama: Runtime) -> None:
    for examples in EXAMPLE_SETS.values():
        assert len(examples.positive) == len(examples.negative) == 10
        sets = sets_of(llama, list(examples.positive), list(examples.negative))
        assert len(await contrast(llama.engine, find(llama, "planted"), sets, 3, llama.contrast_queue)) == 3


async def test_generation_goes_on_while_a_contrast_runs(llama: Runtime) -> None:
    request = ask(llama, "Once upon a time", [{"feature": 3, "scale": 2.0}], max_tokens=100)
    [alone] = [read(events) for events in llama.engine.generate([request])]
    [stream] = llama.engine.submit([request])
    sets = sets_of(llama, texts(20, LETTERS, seed=0), texts(20, LETTERS, seed=1))
    before = llama.engine.stats().num_generated_tokens_total
    await contrast(llama.engine, find(llama, "standard"), sets, 3, llama.contrast_queue)
    assert llama.engine.stats().num_generated_tokens_total > before
    events = [event async for event in stream]
    assert read(events) == alone


async def test_contrasts_are_made_one_at_a_time_and_few_wait(llama: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, most = 0, 0

    def rank(*_: object, **__: object) -> list[Candidate]:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.02)
        inside -= 1
        return []

    monkeypatch.setattr(contrast_module, "rank_features", rank)
    sets = sets_of(llama, ["a", "b"], ["c", "d"])
    asked = [
        contrast(llama.engine, find(llama, "planted"), sets, 3, llama.contrast_queue) for _ in range(MAX_WAITING + 3)
    ]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, QueueFullError)]
    assert answers.count([]) == MAX_WAITING + 1
    assert [error.retry_after_s > 0 for error in refused] == [True, True]
    assert most == 1
    assert await contrast(llama.engine, find(llama, "planted"), sets, 3, llama.contrast_queue) == []


async def test_a_contrast_that_nobody_waits_for_ends_and_lets_the_next_one_in(
    llama: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, ended = threading.Event(), threading.Event()

    def rank(*_: object, should_stop: Callable[[], bool]) -> list[Candidate]:
        begun.set()
        while not should_stop():
            time.sleep(0.01)
        ended.set()
        raise StoppedError("stopped")

    sets = sets_of(llama, ["a", "b"], ["c", "d"])
    with monkeypatch.context() as changed:
        changed.setattr(contrast_module, "rank_features", rank)
        work = asyncio.ensure_future(contrast(llama.engine, find(llama, "planted"), sets, 3, llama.contrast_queue))
        waiting = asyncio.ensure_future(contrast(llama.engine, find(llama, "planted"), sets, 3, llama.contrast_queue))
        await asyncio.to_thread(begun.wait, 30)
        waiting.cancel()
        work.cancel()
        await asyncio.wait((work, waiting))
        assert ended.is_set()
    assert len(await contrast(llama.engine, find(llama, "planted"), sets, 3, llama.contrast_queue)) == 3


async def test_a_text_of_special_tokens_alone_is_named(llama: Runtime) -> None:
    sets = sets_of(llama, ["fine", "good"], ["too", "~~"])
    for work in (
        contrast(llama.engine, find(llama, "planted"), sets, 3, llama.contrast_queue),
        difference_of_means(llama.engine, HOOK_NAME, find(llama, "planted").median_norm, sets, "mean"),
    ):
        with pytest.raises(InvalidRequestError) as caught:
            await work
        assert caught.value.param == "negative[1]"


def test_texts_that_are_too_long_are_named(llama: Runtime) -> None:
    with pytest.raises(ContextLengthError) as caught:
        sets_of(llama, ["a", "b" * 128], ["c", "d"])
    assert caught.value.param == "positive[1]"
    with pytest.raises(InvalidRequestError, match=f"at most {MAX_TOKENS}"):
        sets_of(llama, [f"{number:03}" + "b" * 124 for number in range(300)], ["d", "e"])


def test_a_text_counts_once(llama: Runtime) -> None:
    once = sets_of(llama, ["one", "two"], ["three", "four", "five"])
    again = sets_of(llama, ["one", "two", "one"], ["three", "three", "four", "three", "five"])
    assert (again.rows, again.num_positive, again.num_repeated) == (once.rows, 2, 3)
    assert again.params == ("positive[0]", "positive[1]", "negative[0]", "negative[2]", "negative[4]")


@pytest.mark.parametrize(
    ("positive", "negative", "param"),
    [
        (["one"] * 10, ["three", "four"], "positive"),
        (["one", "two"], ["four"] * 10, "negative"),
        (["one", "two"], ["three", "two", "four"], "negative[1]"),
    ],
)
def test_sets_with_too_few_different_texts_or_shared_ones_are_refused(
    llama: Runtime, positive: list[str], negative: list[str], param: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        sets_of(llama, positive, negative)
    assert caught.value.param == param


@pytest.mark.parametrize(("text", "bos"), [("a\x85b", "a"), ("", None)])
def test_texts_that_the_model_has_no_tokens_for_are_named(text: str, bos: str | None) -> None:
    hf = byte_tokenizer()
    hf.bos_token = bos
    # The model was cut off below the second byte of the first text.
    tokenizer = Tokenizer(hf, frozenset(), max_vocab=128)
    for place, param in enumerate(("positive[1]", "negative[1]")):
        positive, negative = sets = [["a", "b"], ["c", "d"]]
        sets[place][1] = text
        with pytest.raises(InvalidRequestError, match="has no token") as caught:
            read_text_sets(tokenizer, positive, negative, 100)
        assert caught.value.param == param


@pytest.mark.parametrize("pooling", ["mean", "last"])
async def test_a_difference_of_means_is_what_its_name_says(llama: Runtime, pooling: str) -> None:
    positive, negative = ["one", "two more~"], ["three", "four", "five and six"]
    sets = sets_of(llama, positive, negative)
    median = find(llama, "planted").median_norm
    found = await difference_of_means(llama.engine, HOOK_NAME, median, sets, "mean" if pooling == "mean" else "last")
    means = []
    for ids in sets.rows:
        reading = partial(llama.lens.read, torch.tensor([ids]), [HOOK_NAME])
        x = llama.engine.run_exclusive(reading).result(timeout=60)[HOOK_NAME][0]
        kept = x[[place for place, one in enumerate(ids) if one not in {256, ord("~")}]]
        means.append(kept.mean(0) if pooling == "mean" else kept[-1])
    expected = torch.stack(means[:2]).mean(0) - torch.stack(means[2:]).mean(0)
    torch.testing.assert_close(torch.tensor(found.values), expected, rtol=1e-3, atol=1e-3)
    assert 0 <= found.held_out_auc <= 1


async def test_sets_that_do_not_differ_give_no_vector(llama: Runtime) -> None:
    sets = TextSets(((1, 2), (2, 1)) * 2, 2, ("",) * 4)
    with pytest.raises(InvalidRequestError, match="do not differ"):
        await difference_of_means(llama.engine, HOOK_NAME, 100.0, sets, "mean")


async def test_what_only_rounding_tells_apart_gives_no_vector(llama: Runtime) -> None:
    sets = sets_of(llama, ["abcdefghij", "bcadefghij"], ["jihgfedcba", "jihgfedbca"])
    embeddings = "blocks.0.hook_resid_pre"
    medians = llama.engine.median_norms
    with pytest.raises(InvalidRequestError, match="do not differ") as caught:
        await difference_of_means(llama.engine, embeddings, medians[embeddings], sets, "mean")
    assert caught.value.param == "negative"
    later = await difference_of_means(llama.engine, HOOK_NAME, medians[HOOK_NAME], sets, "mean")
    assert np.linalg.norm(later.values) > 0.01 * medians[HOOK_NAME]


# Edits that are ready to be sent


def candidate(feature: int, *, auc: float = 1.0, p_value: float = 0.01) -> Candidate:
    return Candidate(feature, auc, 0.9, p_value, 2.0, 1.0)


def test_what_writes_goes_first_and_what_reads_goes_last(llama: Runtime) -> None:
    known = {1: Calibration(dose=30.0, output_score=0.0001), 3: Calibration(dose=20.0, output_score=0.2)}
    edits = ready_steering([candidate(1), candidate(2), candidate(3)], find(llama, "planted"), known, 3)
    assert [(edit["feature"], edit["unit"]) for edit in edits] == [(3, "dose"), (2, "norm"), (1, "dose")]
    assert [edit["scale"] for edit in edits] == [0.33, 0.09, 0.33]


def test_edits_come_to_one_dose_at_most(llama: Runtime) -> None:
    for known, whole in ({}, 0.27), ({one: Calibration(dose=30.0, output_score=0.2) for one in range(16)}, 1.0):
        for count in range(1, 17):
            found = [candidate(feature) for feature in range(count)]
            scales = [edit["scale"] for edit in ready_steering(found, find(llama, "planted"), known, 16)]
            assert len(scales) == count
            assert whole - 0.01 * count < sum(scales) <= whole + 1e-9


def test_only_features_that_mark_the_positive_set_beyond_chance_are_proposed(llama: Runtime) -> None:
    found = [candidate(1, p_value=0.2), candidate(2, auc=0.0), candidate(4)]
    [edit] = ready_steering(found, find(llama, "planted"), {4: Calibration(dose=10.0, output_score=0.3)}, 3)
    assert edit == {"dictionary": "planted", "feature": 4, "mode": "add", "scale": 1.0, "unit": "dose"}
    assert ready_steering(found, find(llama, "planted"), {}, 0) == []


def test_a_feature_that_writes_nothing_is_not_proposed(llama: Runtime) -> None:
    dictionary = replace(find(llama, "planted"), zero_directions=frozenset({4}))
    assert ready_steering([candidate(4)], dictionary, {}, 3) == []
