"""A pass over a text finds what counting one token at a time finds, however it is cut, and never grows."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from steerserve.core.errors import CorpusError
from steerserve.core.observer import StoppedError
from steerserve.interpret.scan import scan
from steerserve.interpret.tally import Tally
from steerserve.model.lens import load_lens
from steerserve.model.source import fetch_model
from steerserve.store.records import NUM_INTERVALS, NUM_TOP_SNIPPETS, SNIPPET_TOKENS, SNIPPETS_PER_INTERVAL
from tests.interpret.toy import EMBEDDINGS, SINK, batches_of, count, dictionary_of, mark_of, sink_model_folder, texts
from tests.tiny import IM_START_ID
from tests.training.quiet import Quiet

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from steerserve.dictionaries.dictionary import Dictionary
    from steerserve.model.lens import LensModel

pytestmark = pytest.mark.slow

TEXTS = texts(120)
ALL = 1_000_000


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def lens(tmp_path_factory: pytest.TempPathFactory) -> LensModel:
    folder = sink_model_folder(tmp_path_factory.mktemp("model"))
    return load_lens(fetch_model(str(folder)), device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def dictionary(lens: LensModel, tmp_path_factory: pytest.TempPathFactory) -> Dictionary:
    return dictionary_of(lens, tmp_path_factory.mktemp("dictionary"))


def scanned(
    lens: LensModel,
    dictionaries: Mapping[str, Dictionary],
    folder: Path,
    observer: Quiet | None = None,
    *,
    some: list[str] = TEXTS,
    tokens: int = ALL,
) -> dict[str, Tally]:
    folder.mkdir(exist_ok=True)
    return scan(lens, dictionaries, batches_of(lens, some), tokens, folder / "state", observer or Quiet())


def assert_same(one: Tally, other: Tally) -> None:
    first, second = one.tensors(), other.tensors()
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu", "gated", "abstopk"])
def test_what_is_counted_is_what_counting_one_token_at_a_time_finds(
    lens: LensModel, tmp_path: Path, architecture: str
) -> None:
    dictionary = dictionary_of(lens, tmp_path, architecture=architecture)
    tally = scanned(lens, {"a": dictionary}, tmp_path)["a"]
    num_tokens, counted = count(lens, dictionary, batches_of(lens, TEXTS))

    peak_tokens = tally.peak_tokens.most_frequent(1000)
    assert sum(len(one.acts) > 50 for one in counted) > 10
    for feature, (found, one) in enumerate(zip(tally.spread.activities(), counted, strict=True)):
        assert found.num_tokens == num_tokens
        assert found.num_active == len(one.acts) == sum(found.histogram)
        assert found.density == len(one.acts) / num_tokens
        assert Counter(dict(peak_tokens[feature])) == Counter(token_id for _, token_id, *_ in one.peaks)
        assert int(tally.peak_tokens.num_peaks[feature]) == len(one.peaks)
        if not one.acts:
            continue
        maximum = max(one.acts)
        acts = torch.tensor(one.acts, dtype=torch.double)
        assert found.maximum == pytest.approx(maximum, rel=1e-6)
        assert found.mean == pytest.approx(float(acts.mean()), rel=1e-5)
        wanted = torch.quantile(acts, torch.tensor([0.5, 0.75, 0.9, 0.95, 0.99], dtype=torch.double))
        # Within a fine bin lies more than one act; few acts lie far from each other.
        gap = maximum / 256 + float(acts.sort().values.diff().max() if len(acts) > 1 else 0)
        assert torch.allclose(torch.tensor(found.quantiles, dtype=torch.double), wanted, atol=gap)
        for edge in range(1, 64):
            below = sum(found.histogram[:edge])
            assert int((acts < maximum * (edge / 64 - 1 / 256)).sum()) <= below
            assert below <= int((acts <= maximum * (edge / 64 + 1 / 256)).sum())


def test_the_strongest_windows_are_those_of_the_highest_peaks_each_text_once(
    lens: LensModel, dictionary: Dictionary, tmp_path: Path
) -> None:
    some = [*TEXTS, *TEXTS[:30]]
    tally = scanned(lens, {"a": dictionary}, tmp_path, some=some)["a"]
    _, counted = count(lens, dictionary, batches_of(lens, some))

    for snippets, one in zip(tally.snippets(), counted, strict=True):
        best: dict[tuple[int, ...], float] = {}
        for act, _, mark in sorted(one.peaks, reverse=True):
            best.setdefault(mark, act)
        wanted = sorted(best.values(), reverse=True)[:NUM_TOP_SNIPPETS]
        top = [snippet for snippet in snippets if snippet.interval is None]
        assert [snippet.acts[snippet.peak] for snippet in top] == pytest.approx(wanted, rel=1e-5)
        assert {mark_of(snippet.token_ids, snippet.peak) for snippet in top} <= best.keys()
        assert len({mark_of(snippet.token_ids, snippet.peak) for snippet in snippets}) == len(snippets)


def test_windows_end_where_the_text_does_and_hold_the_acts_of_their_tokens(
    lens: LensModel, dictionary: Dictionary, tmp_path: Path
) -> None:
    tally = scanned(lens, {"a": dictionary}, tmp_path)["a"]
    _, counted = count(lens, dictionary, batches_of(lens, TEXTS))

    lengths = set()
    for snippets, one in zip(tally.snippets(), counted, strict=True):
        for snippet in snippets:
            lengths.add(len(snippet.token_ids))
            assert len(snippet.token_ids) == len(snippet.acts) <= SNIPPET_TOKENS
            assert snippet.peak == min(20, snippet.peak)
            assert any(
                snippet.acts[snippet.peak] == pytest.approx(act, rel=1e-5) for act in one.windows[snippet.token_ids]
            )
            left_out = [i for i, token_id in enumerate(snippet.token_ids) if token_id in {IM_START_ID, ord(SINK)}]
            assert all(snippet.acts[place] == 0 for place in left_out)
            if snippet.peak < 20:
                assert snippet.token_ids[0] == IM_START_ID  # every row begins with it
    assert min(lengths) < 21 < SNIPPET_TOKENS == max(lengths)


def test_windows_of_the_intervals_are_spread_over_the_range_up_to_the_maximum(
    lens: LensModel, dictionary: Dictionary, tmp_path: Path
) -> None:
    some = texts(900, seed=1)
    tally = scanned(lens, {"a": dictionary}, tmp_path, some=some)["a"]
    _, counted = count(lens, dictionary, batches_of(lens, some))

    for snippets, one in zip(tally.snippets(), counted, strict=True):
        for interval in range(NUM_INTERVALS):
            found = [snippet for snippet in snippets if snippet.interval == interval]
            assert len(found) <= SNIPPETS_PER_INTERVAL
            low, high = (edge * max(one.acts, default=0) / NUM_INTERVALS for edge in (interval, interval + 1))
            assert all(low * 0.999 <= snippet.acts[snippet.peak] <= high * 1.001 for snippet in found)
            if sum(low <= act < high for act in one.acts) > 200:
                num_strongest = sum(
                    low <= snippet.acts[snippet.peak] for snippet in snippets if snippet.interval is None
                )
                assert found
                assert len(found) >= SNIPPETS_PER_INTERVAL - num_strongest


def test_sinks_and_special_tokens_are_no_peak_and_do_not_count(
    lens: LensModel, dictionary: Dictionary, tmp_path: Path
) -> None:
    tally = scanned(lens, {"a": dictionary}, tmp_path)["a"]
    seen = {token_id for pairs in tally.peak_tokens.most_frequent(1000) for token_id, _ in pairs}
    assert seen <= set(b"abcdefgh ")
    assert int(tally.spread.num_tokens) == sum(len(text.replace(SINK, "")) for text in TEXTS if len(text) >= 7) - cut()


def cut() -> int:
    """Count the tokens of rests that are too short for a row."""
    rests = [text[63 + (len(text) - 63) // 63 * 63 :] for text in TEXTS if len(text) > 63]
    return sum(len(rest.replace(SINK, "")) for rest in rests if len(rest) < 8)


@pytest.mark.parametrize("how", ["cut", "stopped"])
def test_a_pass_that_was_interrupted_finds_what_an_undisturbed_one_finds(
    lens: LensModel, dictionary: Dictionary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr("steerserve.interpret.scan._SAVE_EVERY", 3)
    whole = scanned(lens, {"a": dictionary}, tmp_path / "one")["a"]
    with pytest.raises((KeyboardInterrupt, StoppedError)):
        scanned(lens, {"a": dictionary}, tmp_path / "two", Quiet(cut_at=8) if how == "cut" else Quiet(stop_at=7))
    second = Quiet()
    resumed = scanned(lens, {"a": dictionary}, tmp_path / "two", second)["a"]
    again = scanned(lens, {"a": dictionary}, tmp_path / "two", Quiet(cut_at=1))["a"]

    assert 0 < second.calls < len(list(batches_of(lens, TEXTS)))
    assert_same(whole, resumed)
    assert_same(whole, again)


def test_several_dictionaries_in_one_pass_find_what_each_finds_alone(
    lens: LensModel, dictionary: Dictionary, tmp_path: Path
) -> None:
    others = {
        "b": dictionary_of(lens, tmp_path, EMBEDDINGS, seed=1),
        "c": dictionary_of(lens, tmp_path, "blocks.1.hook_resid_post", seed=2),
    }
    together = scanned(lens, {"a": dictionary, **others}, tmp_path / "all")
    for name, one in {"a": dictionary, **others}.items():
        assert_same(together[name], scanned(lens, {name: one}, tmp_path / name)[name])


def test_as_many_tokens_are_read_as_were_asked_for(lens: LensModel, dictionary: Dictionary, tmp_path: Path) -> None:
    some = [text.replace(SINK, "a") for text in TEXTS]
    tally = scanned(lens, {"a": dictionary}, tmp_path, some=some, tokens=777)["a"]
    assert int(tally.spread.num_tokens) == 777


def test_memory_does_not_grow_with_the_text(
    lens: LensModel, dictionary: Dictionary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steerserve.interpret.peak_tokens._KEPT", 2)

    def size(num_texts: int) -> int:
        tally = scanned(lens, {"a": dictionary}, tmp_path / str(num_texts), some=texts(num_texts, seed=2))["a"]
        return sum(tensor.nbytes for tensor in tally.tensors().values())

    assert size(500) <= size(50) + 24 * 8 * 9 * 16  # tokens that came up since the last clearing


def test_text_without_a_token_to_read_is_a_corpus_error(
    lens: LensModel, dictionary: Dictionary, tmp_path: Path
) -> None:
    for some in ([], ["tiny"], [SINK * 30]):
        with pytest.raises(CorpusError, match="no token"):
            scanned(lens, {"a": dictionary}, tmp_path, some=some)
