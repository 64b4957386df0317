"""Small random models of many architectures, written to folders as real ones come."""

from pathlib import Path
from typing import Any

import torch
import transformers

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

STEERED: dict[str, dict[str, Any]] = {
    "Llama": GROUPED,
    "GPT2": {"n_positions": CONTEXT, "n_embd": 48, "n_layer": 2, "n_head": 4},
    **{name: SERVED[name] for name in ("Gemma3", "Qwen3", "Mistral", "Phi", "GPTNeoX")},
}


def write_model(name: str, extra: dict[str, Any], folder: Path, *, std: float | None = None) -> ModelFiles:
    """Write a random model; with `std` all its weights and biases are drawn anew, so that every part of it counts."""
    config_class = getattr(transformers, f"{name}TextConfig" if name == "Gemma3" else f"{name}Config")
    model_class = getattr(transformers, f"{name}ForCausalLM", None) or getattr(transformers, f"{name}LMHeadModel")
    torch.manual_seed(0)
    model = model_class(config_class(**(SIZES | extra)))
    if std is not None:
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=std)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return ModelFiles(name, folder, str(folder))


def load(name: str, extra: dict[str, Any], folder: Path) -> LensModel:
    """Load a random model as the server does."""
    return load_lens(write_model(name, extra, folder), device="cpu")
