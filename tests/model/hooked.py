"""HookedTransformers of every kind that TransformerLens can build, small and random, and their folders."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig

from steerserve.model.hooked_files import save_hooked
from tests.tiny import CONTEXT, D_MODEL, VOCAB_SIZE, byte_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

LEARNED = {"act_fn": "gelu_new"}
ROTARY = {
    "positional_embedding_type": "rotary",
    "rotary_adjacent_pairs": False,
    "normalization_type": "RMS",
    "final_rms": True,
    "act_fn": "silu",
    "gated_mlp": True,
}
SHAPES: dict[str, dict[str, Any]] = {
    "learned": LEARNED,
    "grouped": ROTARY | {"n_key_value_heads": 2},
    "attn-only": {"attn_only": True, "act_fn": None},
    "shortformer": {"attn_only": True, "act_fn": None, "positional_embedding_type": "shortformer"},
    "solu": {"act_fn": "solu_ln", "normalization_type": "LNPre"},
    "alibi": LEARNED | {"positional_embedding_type": "alibi", "post_embedding_ln": True},
    "parallel": {
        "positional_embedding_type": "rotary",
        "rotary_dim": 6,
        "rotary_adjacent_pairs": True,
        "act_fn": "gelu_fast",
        "parallel_attn_mlp": True,
    },
    "local": ROTARY
    | {
        "use_local_attn": True,
        "window_size": 5,
        "attn_types": ["local", "global"],
        "rotary_base_local": 100,
        "use_qk_norm": True,
    },
    "all-local": LEARNED | {"use_local_attn": True, "window_size": 5, "attn_types": ["local", "local"]},
    "capped": ROTARY
    | {
        "attn_scores_soft_cap": 3.0,
        "output_logits_soft_cap": 5.0,
        "use_normalization_before_and_after": True,
        "use_attention_sinks": True,
    },
    "post-norm": ROTARY | {"original_architecture": "Olmo2ForCausalLM", "n_key_value_heads": 2, "clip_qkv": 2.0},
    "experts": ROTARY | {"num_experts": 4, "experts_per_token": 2},
    "no-norm": LEARNED | {"normalization_type": None, "act_fn": "relu"},
}
"""By name, what differs from TransformerLens' defaults."""


def hooked_model(name: str, *, seed: int = 0) -> HookedTransformer:
    """Build a model of two layers with lively weights; the last tokens of its vocabulary are unlikely."""
    config = {"n_layers": 2, "d_model": D_MODEL, "d_head": 12, "n_heads": 4, "n_ctx": CONTEXT, "d_vocab": VOCAB_SIZE}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        model = HookedTransformer(HookedTransformerConfig(**config | {"d_mlp": 96, "device": "cpu"} | SHAPES[name]))
    generator = torch.Generator().manual_seed(seed)
    for parameter_name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        last = parameter_name.rpartition(".")[2]
        if last == "w":
            parameter.data = 1 + 0.1 * noise
        elif last in {"W_E", "W_pos"}:
            parameter.data = 0.5 * noise
        else:
            parameter.data = (1.5 * D_MODEL**-0.5 if last.lstrip("_").startswith("W") else 0.1) * noise
    return model.eval().requires_grad_(requires_grad=False)


def hooked_folder(name: str, folder: Path, *, has_template: bool = True, seed: int = 0) -> Path:
    """Write such a model as a folder that can be served."""
    save_hooked(hooked_model(name, seed=seed), folder)
    tokenizer = byte_tokenizer()
    if not has_template:
        tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    return folder
