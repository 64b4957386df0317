"""Each mode against SAELens' own splice: the SAE in the model with its error term on, `hook_sae_acts_post` edited."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from sae_lens import SAE
from sae_lens.analysis.sae_transformer_bridge import SAETransformerBridge
from transformer_lens.model_bridge.generalized_components import OpaqueBlockBridge
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
from transformers import AutoModelForCausalLM

from tests.engine.harness import ask, run
from tests.tiny import VOCAB_SIZE

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from steerserve.runtime import Runtime

PROMPT = "<|im_start|>user\nWhat ~ is steering?<|im_end|>\nIt is"
MODES: dict[str, dict[str, Any]] = {
    "add": {"mode": "add", "scale": 5.0},
    "clamp": {"mode": "clamp", "scale": 4.0},
    "multiply": {"mode": "multiply", "scale": -2.5},
    "ablate": {"mode": "ablate"},
    "floor": {"mode": "floor", "scale": 1.0},
    "ceiling": {"mode": "ceiling", "scale": 0.3},
}


@pytest.fixture(scope="module")
def bridge(model_folders: dict[str, Path]) -> Any:  # noqa: ANN401 SAELens is not typed for us
    """Return SAELens' bridge over the tiny Llama."""

    def opaque(adapter: Any) -> None:  # noqa: ANN401
        adapter.component_mapping["blocks"] = OpaqueBlockBridge(name=adapter.component_mapping["blocks"].name)

    model = AutoModelForCausalLM.from_pretrained(model_folders["llama"], dtype=torch.float32).eval()
    built = build_bridge_from_module(
        model, "LlamaForCausalLM", hf_config=model.config, model_name="tiny", post_adapter_hook=opaque
    )
    # As SAETransformerBridge.boot_transformers does with a model that it fetched itself.
    built.__class__ = SAETransformerBridge
    built._acts_to_saes = {}
    built._transcoder_output_hooks = {}
    return built


def edited(acts: Tensor, feature: int, mode: str, s: float) -> Tensor:
    f = acts[..., feature]
    value = {
        "add": f + s,
        "clamp": torch.full_like(f, s),
        "multiply": f * s,
        "ablate": torch.zeros_like(f),
        "floor": f.clamp(min=s),
        "ceiling": f.clamp(max=s),
    }[mode]
    acts = acts.clone()
    acts[..., feature] = value
    return acts


@torch.no_grad()
def spliced(bridge: Any, sae: Any, ids: tuple[int, ...], feature: int, how: dict[str, Any]) -> tuple[Tensor, Tensor]:  # noqa: ANN401
    """Return the logits `[pos, vocab]` with the edit, and the feature's activations before it."""
    seen: list[Tensor] = []

    def hook(acts: Tensor, hook: object) -> Tensor:  # noqa: ARG001 TransformerLens passes it by name
        seen.append(acts[0, :, feature].clone())
        return edited(acts, feature, how["mode"], how.get("scale", 0.0))

    with bridge.saes([sae], use_error_term=True):
        name = bridge.get_sae_hook_name(sae)
        logits = bridge.run_with_hooks(torch.tensor([ids]), fwd_hooks=[(name, hook)])[0]
    return logits, seen[0]


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["standard", "topk", "jumprelu", "gated", "normalised", "raw"])
def test_an_edit_equals_saelens_splice(
    name: str,
    mode: str,
    bridge: Any,  # noqa: ANN401
    llama: Runtime,
    dictionary_folders: dict[str, Path],
) -> None:
    sae: Any = SAE.load_from_disk(dictionary_folders[name])
    ids = tuple(llama.tokenizer.encode_plain(PROMPT))
    how = MODES[mode]
    with torch.no_grad():
        plain = bridge(torch.tensor([ids]))[0].log_softmax(-1)
    changed = 0
    for feature in _often_active(llama, name, ids)[:4]:
        logits, acts = spliced(bridge, sae, ids, feature, how)
        expected = logits.log_softmax(-1)
        edit = {"dictionary": name, "feature": feature, "special_tokens": True, **how}
        [answer] = run(
            llama.engine,
            ask(llama, ids, [edit], max_tokens=1, num_prompt_logprobs=VOCAB_SIZE, num_logprobs=VOCAB_SIZE),
        )
        assert answer.prompt_logprobs is not None
        tops = [entry.top for entry in answer.prompt_logprobs[1:] if entry is not None] + [answer.tops[0]]
        ours = torch.stack([_row(top) for top in tops])
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)
        assert answer.receipt is not None
        assert answer.receipt["edits"][0]["mean_activation"] == pytest.approx(float(acts.mean()), rel=1e-4, abs=1e-5)
        changed += bool((expected - plain).abs().max() > 1e-2)
    assert changed >= 3  # else the features chosen would show nothing


def _often_active(runtime: Runtime, dictionary: str, ids: tuple[int, ...]) -> list[int]:
    found = runtime.registry.snapshot().dictionaries[dictionary]
    with torch.no_grad():
        acts = found.sae.encode(runtime.lens.read(torch.tensor([ids]), [found.hook_name])[found.hook_name][0].clone())
    active = ((acts > 0.5) & (acts < 50)).sum(0)
    order: list[int] = active.argsort(descending=True).tolist()
    return order


def _row(top: tuple[tuple[int, float], ...]) -> Tensor:
    row = torch.empty(len(top))
    row[[token_id for token_id, _ in top]] = torch.tensor([value for _, value in top])
    return row


@pytest.mark.parametrize("name", ["standard", "jumprelu", "gated", "raw", "late"])
def test_columns_read_what_saelens_encodes(llama: Runtime, name: str) -> None:
    found = llama.registry.snapshot().dictionaries[name]
    x = 3 * torch.randn(50, found.d_in, generator=torch.Generator().manual_seed(1))
    features = list(range(found.d_sae))
    columns = found.columns(features)
    pre = x @ columns.encoder.T
    acts = (pre * columns.gain + columns.bias).clamp(min=0) * (pre + columns.gate_bias > columns.threshold)
    torch.testing.assert_close(acts, found.sae.encode(x), atol=1e-5, rtol=1e-5)
    assert torch.equal(columns.decoder, found.sae.W_dec[features])
    assert found.is_pointwise


@pytest.mark.parametrize("name", ["topk", "normalised"])
def test_features_that_depend_on_the_others_are_never_read_alone(llama: Runtime, name: str) -> None:
    assert not llama.registry.snapshot().dictionaries[name].is_pointwise
