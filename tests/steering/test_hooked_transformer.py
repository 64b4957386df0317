"""The engine against TransformerLens' own model: the same weights, the same edits made with its hooks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from sae_lens import SAE
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights, convert_llama_weights
from transformers import AutoModelForCausalLM

from steerserve.model.names import KINDS
from tests.engine.harness import ask, run
from tests.tiny import CONTEXT, D_MODEL, NUM_LAYERS, VOCAB_SIZE

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from steerserve.runtime import Runtime

PROMPT = "A short text of several words."
NUM_TOKENS = 6
VECTOR = [0.1 * (place % 7 - 3) for place in range(D_MODEL)]

COMMON = {
    "d_model": D_MODEL,
    "n_layers": NUM_LAYERS,
    "n_heads": 4,
    "d_head": D_MODEL // 4,
    "n_ctx": CONTEXT,
    "d_vocab": VOCAB_SIZE,
    "device": "cpu",
    "default_prepend_bos": False,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {
        "d_mlp": 96,
        "n_key_value_heads": 2,
        "act_fn": "silu",
        "normalization_type": "RMS",
        "positional_embedding_type": "rotary",
        "rotary_dim": D_MODEL // 4,
        "rotary_adjacent_pairs": False,
        "gated_mlp": True,
        "final_rms": True,
        "eps": 1e-6,
    },
    "gpt2": {"d_mlp": 4 * D_MODEL, "act_fn": "gelu_new", "normalization_type": "LN", "eps": 1e-5},
}
CONVERTERS = {"llama": convert_llama_weights, "gpt2": convert_gpt2_weights}


@pytest.fixture(scope="module", params=list(CONFIGS))
def both(request: pytest.FixtureRequest, model_folders: dict[str, Path]) -> tuple[Runtime, Any]:
    """Return a runtime and TransformerLens' model with the same weights."""
    runtime: Runtime = request.getfixturevalue(request.param)
    config = HookedTransformerConfig(**COMMON, **CONFIGS[request.param])
    hf_model = AutoModelForCausalLM.from_pretrained(model_folders[request.param], dtype=torch.float32)
    with pytest.warns(DeprecationWarning, match="HookedTransformer"):
        hooked = HookedTransformer(config)
    state = CONVERTERS[request.param](hf_model, config)
    hooked.load_and_process_state_dict(
        state, fold_ln=False, center_writing_weights=False, center_unembed=False, fold_value_biases=False
    )
    return runtime, hooked


@torch.no_grad()
def greedy(hooked: Any, prompt: tuple[int, ...], fwd_hooks: list[Any]) -> tuple[list[int], Tensor]:  # noqa: ANN401
    ids, rows = list(prompt), []
    for _ in range(NUM_TOKENS):
        rows.append(hooked.run_with_hooks(torch.tensor([ids]), fwd_hooks=fwd_hooks)[0, -1])
        ids.append(int(rows[-1].argmax()))
    return ids[len(prompt) :], torch.stack(rows)


def check(runtime: Runtime, hooked: Any, steering: Any, fwd_hooks: list[Any]) -> None:  # noqa: ANN401
    request = ask(runtime, PROMPT, steering, max_tokens=NUM_TOKENS, num_logprobs=VOCAB_SIZE)
    [answer] = run(runtime.engine, request)
    token_ids, logits = greedy(hooked, request.prompt_ids, fwd_hooks)
    assert list(answer.token_ids) == token_ids
    torch.testing.assert_close(answer.all_logprobs(), logits.log_softmax(-1), atol=1e-4, rtol=0)


def test_without_edits_the_logits_are_the_same(both: tuple[Runtime, Any]) -> None:
    check(*both, None, [])


@pytest.mark.parametrize("name", ["standard", "topk", "jumprelu", "gated", "late"])
def test_an_edited_feature_gives_the_same_logits(
    both: tuple[Runtime, Any], name: str, dictionary_folders: dict[str, Path]
) -> None:
    sae: Any = SAE.load_from_disk(dictionary_folders[name])

    def hook(resid: Tensor, hook: object) -> Tensor:  # noqa: ARG001 TransformerLens passes it by name
        acts = sae.encode(resid)
        after = acts.clone()
        after[..., 3] += 6.0
        after[..., 5] = 4.0
        after[..., 7] *= 3.0
        edited: Tensor = resid + sae.decode(after) - sae.decode(acts)
        return edited

    edits: list[dict[str, Any]] = [
        {"feature": 3, "scale": 6.0},
        {"feature": 5, "mode": "clamp", "scale": 4.0},
        {"feature": 7, "mode": "multiply", "scale": 3.0},
    ]
    steering = [{**edit, "dictionary": name, "special_tokens": True} for edit in edits]
    check(*both, steering, [(sae.cfg.metadata.hook_name, hook)])


@pytest.mark.parametrize("layer", range(NUM_LAYERS))
@pytest.mark.parametrize("kind", KINDS)
def test_a_vector_at_any_hook_point_gives_the_same_logits(both: tuple[Runtime, Any], layer: int, kind: str) -> None:
    hook_name = f"blocks.{layer}.{kind}"

    def hook(x: Tensor, hook: object) -> Tensor:  # noqa: ARG001
        return x + 2.5 * torch.tensor(VECTOR).reshape(x.shape[2:])  # heads apart at `attn.hook_z`

    steering = [{"vector": {"hook": hook_name, "values": VECTOR}, "scale": 2.5, "special_tokens": True}]
    check(*both, steering, [(hook_name, hook)])
