"""The cache holds what training may see: never a sink, never a special token, and the same after any interrupt."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from steerserve.core.errors import CorpusError
from steerserve.training.activations import harvest, statistics
from steerserve.training.corpus import Document
from steerserve.training.windows import Windower, batch_windows
from tests.training.quiet import Quiet

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from steerserve.model.lens import LensModel
    from steerserve.training.windows import WindowBatch

HOOK = "blocks.1.hook_resid_post"
EMBEDDINGS = "blocks.0.hook_resid_pre"
TEXT = "sense and ~ nonsense ~~ in turn; " * 3


def batches(lens: LensModel, texts: list[str], batch_tokens: int = 128) -> Iterator[WindowBatch]:
    documents = [Document("t", text=text) for text in texts]
    return batch_windows(Windower(lens.tokenizer, 32).windows(documents), lens.tokenizer.special_ids, batch_tokens)


def test_sinks_and_special_tokens_never_get_in(
    sink_lens: LensModel, embeddings: NDArray[np.float32], tmp_path: Path
) -> None:
    rows = harvest(sink_lens, EMBEDDINGS, batches(sink_lens, [TEXT] * 20), tmp_path, 100_000, Quiet())

    nearest = {int(np.abs(embeddings - row.astype(np.float32)).sum(axis=1).argmin()) for row in rows}
    assert nearest == {ord(letter) for letter in TEXT} - {ord("~")}
    # Windows of 31 bytes leave a rest of 6, too short for a row.
    assert len(rows) == 20 * len(TEXT[:93].replace("~", ""))


def test_no_row_is_longer_than_five_times_the_median(sink_lens: LensModel, tmp_path: Path) -> None:
    rows = harvest(sink_lens, HOOK, batches(sink_lens, [TEXT] * 20), tmp_path, 500, Quiet())
    known = statistics(rows)
    norms = np.linalg.norm(rows.astype(np.float32), axis=1)
    assert norms.max() < 5 * known.median_norm
    assert known.median_norm == pytest.approx(np.median(norms), rel=1e-5)
    assert known.mean_norm == pytest.approx(norms.mean(), rel=1e-5)
    np.testing.assert_allclose(known.mean.numpy(), rows.astype(np.float64).mean(axis=0), atol=1e-5)


def test_a_cache_filled_in_two_goes_is_the_one_filled_in_one(
    sink_lens: LensModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steerserve.training.activations._SAVE_EVERY", 3)
    texts = [f"{number} {TEXT}" for number in range(20)]

    def fill(folder: str, progress: Quiet) -> NDArray[np.generic]:
        return harvest(sink_lens, HOOK, batches(sink_lens, texts), tmp_path / folder, 1500, progress)

    whole = fill("one", Quiet())
    with pytest.raises(KeyboardInterrupt):
        fill("two", Quiet(after=8))
    second = Quiet()
    resumed = fill("two", second)
    again = fill("two", Quiet(after=1))

    assert 0 < second.calls < 15
    np.testing.assert_array_equal(whole, resumed)
    np.testing.assert_array_equal(whole, again)


def test_text_without_a_token_to_train_on_is_a_corpus_error(sink_lens: LensModel, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="no token"):
        harvest(sink_lens, HOOK, batches(sink_lens, ["tiny"]), tmp_path, 100, Quiet())
