"""Every architecture here computes the same with the slot cache as without; those that cannot are refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from steerserve.core.errors import ModelSourceError
from steerserve.engine.runner import Runner
from steerserve.engine.selfcheck import check_cache
from steerserve.model.lens import LensModel, load_lens
from steerserve.model.source import ModelFiles
from tests.tiny import CONTEXT, IM_END_ID, IM_START_ID, PAD_ID, VOCAB_SIZE, byte_tokenizer

SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": IM_START_ID,
    "eos_token_id": IM_END_ID,
    "pad_token_id": PAD_ID,
}
GROUPED = {"num_key_value_heads": 2}
WINDOW = {"head_dim": 12, "sliding_window": 8}
SERVED: dict[str, dict[str, Any]] = {
    "Mistral": GROUPED | {"sliding_window": 8},
    "Qwen2": GROUPED,
    "Qwen3": GROUPED | {"head_dim": 12},
    "Gemma2": GROUPED | WINDOW,
    "Gemma3": GROUPED | WINDOW | {"layer_types": ["sliding_attention", "full_attention"]},
    "Phi": {},
    "Phi3": GROUPED,
    "GPTNeoX": {},
    "OPT": {"ffn_dim": 96, "word_embed_proj_dim": 48},
    "Falcon": {},
}
REFUSED: dict[str, dict[str, Any]] = {"Mamba": {}, "Bloom": {"n_layer": 2, "n_head": 4}}


def load(name: str, extra: dict[str, Any], folder: Path) -> LensModel:
    config_class = getattr(transformers, f"{name}TextConfig" if name == "Gemma3" else f"{name}Config")
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(config_class(**(SIZES | extra)))
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return load_lens(ModelFiles(name, folder, str(folder)), device="cpu")


@pytest.mark.parametrize("name", SERVED)
def test_an_architecture_computes_the_same_with_the_cache(name: str, tmp_path: Path) -> None:
    lens = load(name, SERVED[name], tmp_path)
    check_cache(Runner(lens, num_slots=2, context=64, median_norms={}))


@pytest.mark.parametrize("name", REFUSED)
def test_an_architecture_that_the_cache_cannot_follow_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelSourceError):
        check_cache(Runner(load(name, REFUSED[name], tmp_path), num_slots=2, context=64, median_norms={}))
