"""Activations token by token: what means are the means of."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import pytest
import torch

from steerserve.compare.arms import Arm, EditedFeatures
from steerserve.compare.metrics import edited_by_token
from steerserve.compare.scoring import Scorer
from steerserve.engine.background import run_pieces

if TYPE_CHECKING:
    from steerserve.compare.metrics import SampleScore
    from steerserve.runtime import Runtime

PROMPT = "<|im_start|>user\nTell me ~ about it, please.<|im_end|>\nwell"
TEXT = "so it <|im_start|>goes~ on, and on" * 2
FEATURES = {"standard": (3, 40), "topk": (7,)}


def read(runtime: Runtime, text: str, wanted: dict[str, tuple[int, ...]] | None, piece: int) -> SampleScore:
    encode = runtime.tokenizer.encode_plain
    dictionaries = [one for one in runtime.dictionaries() if one.id in FEATURES]
    norms = runtime.engine.median_norms
    scorer = Scorer(runtime.lens, norms, dictionaries, encode("<|im_start|>"), wanted)
    scorer._limit = piece
    arm, token_ids = Arm("arm", tuple(encode(PROMPT))), tuple(encode(text))
    score: SampleScore = runtime.engine.run_exclusive(
        functools.partial(run_pieces, scorer.read(arm, token_ids))
    ).result()
    return score


@pytest.mark.parametrize("piece", [5, 64])
def test_their_mean_over_the_tokens_that_count_is_the_mean(piece: int, llama: Runtime) -> None:
    score = read(llama, TEXT, FEATURES, piece)
    num_tokens = len(llama.tokenizer.encode_plain(TEXT))
    for name, features in FEATURES.items():
        acts = score.by_token[name]
        assert acts.shape == (num_tokens, len(features))
        torch.testing.assert_close(acts.nanmean(0), score.means[name][list(features)], atol=1e-5, rtol=1e-4)
        place = llama.tokenizer.encode_plain("so it <|im_start|>").index(256)
        assert bool(acts[place].isnan().all())
        assert 0 < int(acts.isnan().any(1).sum()) < num_tokens


def test_tokens_that_do_not_count_have_none_and_so_has_a_text_without_any(llama: Runtime) -> None:
    [dictionary] = [one for one in llama.dictionaries() if one.id == "standard"]
    edited = [EditedFeatures(dictionary, (3, 40))]
    found = edited_by_token(read(llama, "a<|im_start|>b", FEATURES, 64), edited, 3)
    assert set(found["standard"]) == {3, 40}
    assert found["standard"][3][1] is None
    assert isinstance(found["standard"][3][0], float)
    assert edited_by_token(read(llama, "", FEATURES, 64), edited, 0) == {"standard": {3: [], 40: []}}
    assert edited_by_token(read(llama, "a", None, 64), edited, 1) == {"standard": {3: [None], 40: [None]}}
