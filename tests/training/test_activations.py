"""What training may see: never a sink, never a special token, and the same after any interrupt."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from steerserve.core.errors import CorpusError
from steerserve.core.observer import StoppedError
from steerserve.text.files import Document
from steerserve.text.windows import Windower, batch_windows
from steerserve.training.activations import ActivationReader, CachedActivations, statistics
from steerserve.training.buffer import BufferedBatches
from steerserve.training.cache import fill_cache
from tests.training.quiet import Quiet

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from steerserve.model.lens import LensModel

HOOK = "blocks.1.hook_resid_post"
EMBEDDINGS = "blocks.0.hook_resid_pre"
TEXT = "sense and ~ nonsense ~~ in turn; " * 3
TEXTS = [f"{number} {TEXT}" for number in range(20)]


def reader(lens: LensModel, texts: list[str], hooks: tuple[str, ...] = (HOOK,)) -> ActivationReader:
    windows = Windower(lens.tokenizer, 32).windows([Document("t", text=text) for text in texts])
    return ActivationReader(lens, hooks, batch_windows(windows, lens.tokenizer.special_ids, 128))


def letters(rows: NDArray[np.generic], embeddings: NDArray[np.float32]) -> list[str]:
    """Read tokens back from what stood before the first block."""
    return [chr(int(np.abs(embeddings - row.astype(np.float32)).sum(axis=1).argmin())) for row in rows]


def test_sinks_and_special_tokens_never_get_in(
    sink_lens: LensModel, embeddings: NDArray[np.float32], tmp_path: Path
) -> None:
    cached = fill_cache(reader(sink_lens, [TEXT] * 20, (EMBEDDINGS,)), tmp_path, 100_000, Quiet())

    rows = cached.rows[EMBEDDINGS]
    assert set(letters(rows, embeddings)) == set(TEXT) - {"~"}
    # Windows of 31 bytes leave a rest of 6, too short for a row.
    assert len(rows) == 20 * len(TEXT[:93].replace("~", ""))
    assert cached.num_sinks == 20 * TEXT[:93].count("~")


def test_no_row_is_longer_than_five_times_the_median(sink_lens: LensModel, tmp_path: Path) -> None:
    rows = fill_cache(reader(sink_lens, [TEXT] * 20), tmp_path, 500, Quiet()).rows[HOOK]
    known = statistics(rows)
    norms = np.linalg.norm(rows.astype(np.float32), axis=1)
    assert norms.max() < 5 * known.median_norm
    assert known.median_norm == pytest.approx(np.median(norms), rel=1e-5)
    assert known.mean_norm == pytest.approx(norms.mean(), rel=1e-5)
    np.testing.assert_allclose(known.mean.numpy(), rows.astype(np.float64).mean(axis=0), atol=1e-5)


def test_one_pass_gives_the_same_tokens_at_every_hook_point(sink_lens: LensModel, tmp_path: Path) -> None:
    together = fill_cache(reader(sink_lens, TEXTS, (HOOK, EMBEDDINGS)), tmp_path / "both", 300, Quiet()).rows
    for hook in (HOOK, EMBEDDINGS):
        alone = fill_cache(reader(sink_lens, TEXTS, (hook,)), tmp_path / hook, 300, Quiet()).rows
        np.testing.assert_array_equal(together[hook], alone[hook])


@pytest.mark.parametrize("how", ["cut", "stopped"])
def test_a_cache_filled_in_two_goes_is_the_one_filled_in_one(
    sink_lens: LensModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr("steerserve.training.cache._SAVE_EVERY", 3)

    def fill(folder: str, observer: Quiet) -> CachedActivations:
        return fill_cache(reader(sink_lens, TEXTS), tmp_path / folder, 1500, observer)

    whole = fill("one", Quiet())
    first = Quiet(cut_at=8) if how == "cut" else Quiet(stop_at=8)
    with pytest.raises((KeyboardInterrupt, StoppedError)):
        fill("two", first)
    second = Quiet()
    resumed = fill("two", second)
    again = fill("two", Quiet(cut_at=1))

    assert 0 < second.calls < 15
    for other in (resumed, again):
        np.testing.assert_array_equal(whole.rows[HOOK], other.rows[HOOK])
        assert other.num_sinks == whole.num_sinks
        assert other.profile == whole.profile


def test_text_without_a_token_to_train_on_is_a_corpus_error(sink_lens: LensModel, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="no token"):
        fill_cache(reader(sink_lens, ["tiny"]), tmp_path, 100, Quiet())
    with pytest.raises(CorpusError, match="no token"):
        buffered(sink_lens, ["tiny"], 100).fill(Quiet())


def buffered(lens: LensModel, texts: list[str], tokens: int, num_bytes: int = 1) -> BufferedBatches:
    hooks = (EMBEDDINGS, HOOK)
    return BufferedBatches(lambda: reader(lens, texts, hooks), tokens, batch_size=32, num_bytes=num_bytes, seed=1)


def test_the_buffer_serves_every_token_and_mixes_them(sink_lens: LensModel, embeddings: NDArray[np.float32]) -> None:
    text = "abcdefghijklmnopqrstuvwxyz0123"
    batches = buffered(sink_lens, [text[place:] + text[:place] for place in range(30)], 30 * 30)
    batches.fill(Quiet())
    served = [batches.batch(step)[EMBEDDINGS] for step in range(batches.num_steps)]

    assert batches.num_steps == 28
    assert all(len(batch) == 32 for batch in served)
    counts = {letter: letters(torch.cat(served).numpy(), embeddings).count(letter) for letter in text}
    assert min(counts.values()) >= 20
    assert letters(served[0].numpy(), embeddings) != list((text + text)[:32])


def test_the_buffer_goes_on_from_a_checkpoint_as_if_never_cut(sink_lens: LensModel, tmp_path: Path) -> None:
    whole = buffered(sink_lens, TEXTS, 4000)
    whole.fill(Quiet())
    first = buffered(sink_lens, TEXTS, 4000)
    first.fill(Quiet())
    expected = [whole.batch(step) for step in range(whole.num_steps)]
    for step in range(61):
        first.batch(step)
    first.save(tmp_path)

    second = buffered(sink_lens, TEXTS, 4000)
    second.load(tmp_path)
    for step in range(61, whole.num_steps):
        batch = second.batch(step)
        assert torch.equal(batch[HOOK], expected[step][HOOK]), step
    assert second.num_tokens == whole.num_tokens
    assert second.num_sinks == whole.num_sinks
    assert second.statistics[HOOK].mean_norm == first.statistics[HOOK].mean_norm


def test_the_buffer_keeps_within_its_bound_and_reads_a_short_text_again(sink_lens: LensModel) -> None:
    batches = buffered(sink_lens, TEXTS[:3], 2000, num_bytes=10_000_000)
    batches.fill(Quiet())
    assert all(len(batches.batch(step)[HOOK]) == 32 for step in range(batches.num_steps))
    assert batches.num_tokens < 300
