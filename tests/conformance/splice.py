"""SAELens' own model with its own SAE spliced in, error term on, and `hook_sae_acts_post` edited."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch
from sae_lens import SAE
from sae_lens.analysis.hooked_sae_transformer import HookedSAETransformer
from sae_lens.saes.matching_pursuit_sae import MatchingPursuitSAE
from transformer_lens import HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import convert_llama_weights
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tests.tiny import CONTEXT, D_MODEL, IM_END_ID, IM_START_ID, NUM_LAYERS, PAD_ID, VOCAB_SIZE, _save

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

D_HEAD = 16
"""Not d_model over the number of heads, so that `attn.hook_z` is wider than the stream."""
NUM_HEADS = 4
D_MLP = 96


@dataclass(frozen=True)
class RowEdit:
    """What is edited in one row of a batch."""

    feature: int
    mode: str
    scale: float
    positions: str

    def as_json(self, dictionary: str) -> dict[str, Any]:
        """Return the edit of the API."""
        scale = {} if self.mode in {"ablate", "remove"} else {"scale": self.scale}
        named = {"dictionary": dictionary, "feature": self.feature, "mode": self.mode, "positions": self.positions}
        return {**named, **scale, "special_tokens": True}

    def edited(self, f: Tensor) -> Tensor:
        """Return the activation after the edit. Source: api.md section 2.2."""
        return {
            "add": f + self.scale,
            "clamp": torch.full_like(f, self.scale),
            "multiply": f * self.scale,
            "ablate": torch.zeros_like(f),
            "floor": f.clamp(min=self.scale),
            "ceiling": f.clamp(max=self.scale),
        }[self.mode]

    def places(self, num_prompt: int) -> slice:
        """Return which tokens it means."""
        return {"all": slice(None), "prompt": slice(num_prompt), "generated": slice(num_prompt, None)}[self.positions]


def model_folder(path: Path) -> Path:
    """Write a random Llama whose heads together are wider than its stream."""
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=D_MODEL,
        intermediate_size=D_MLP,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=NUM_HEADS,
        num_key_value_heads=2,
        head_dim=D_HEAD,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        bos_token_id=IM_START_ID,
        eos_token_id=IM_END_ID,
        pad_token_id=PAD_ID,
    )
    return _save(LlamaForCausalLM(config), path, seed=3)


def reference_model(folder: Path) -> Any:  # noqa: ANN401 SAELens is not typed for us
    """Return SAELens' model with the same weights, none of them processed."""
    config = HookedTransformerConfig(
        d_model=D_MODEL,
        n_layers=NUM_LAYERS,
        n_heads=NUM_HEADS,
        n_key_value_heads=2,
        d_head=D_HEAD,
        d_mlp=D_MLP,
        n_ctx=CONTEXT,
        d_vocab=VOCAB_SIZE,
        act_fn="silu",
        gated_mlp=True,
        normalization_type="RMS",
        final_rms=True,
        eps=1e-6,
        positional_embedding_type="rotary",
        rotary_dim=D_HEAD,
        rotary_adjacent_pairs=False,
        use_hook_mlp_in=True,
        default_prepend_bos=False,
        device="cpu",
    )
    with pytest.warns(DeprecationWarning, match="HookedTransformer"):
        model = HookedSAETransformer(config)
    hf_model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.load_and_process_state_dict(
        convert_llama_weights(hf_model, config),
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
    )
    return model.eval()


def load_sae(folder: Path) -> Any:  # noqa: ANN401
    """Load a dictionary by SAELens alone. Its matching pursuit never calls the hook on activations; here it does."""
    sae: Any = SAE.load_from_disk(folder)
    if isinstance(sae, MatchingPursuitSAE):
        encode = sae.encode
        sae.encode = lambda x: sae.hook_sae_acts_post(encode(x))
    return sae


@torch.no_grad()
def spliced(model: Any, sae: Any, ids: Tensor, edits: Sequence[RowEdit], num_prompt: int) -> Tensor:  # noqa: ANN401
    """Return the log-probabilities `[rows, pos, vocab]` where each row has its own edit.

    `remove`, which goes by no activation, is made on what SAELens puts out at the hook point.
    """

    def edit_acts(acts: Tensor, hook: object) -> Tensor:  # noqa: ARG001 TransformerLens passes it by name
        acts = acts.clone()
        for row, edit in enumerate(edits):
            if edit.mode != "remove":
                here = (row, edit.places(num_prompt), edit.feature)
                acts[here] = edit.edited(acts[here])
        return acts

    def edit_output(out: Tensor, hook: object) -> Tensor:  # noqa: ARG001
        flat = out.clone().flatten(2)  # heads lie apart at `attn.hook_z`
        for row, edit in enumerate(edits):
            if edit.mode == "remove":
                unit = torch.nn.functional.normalize(sae.W_dec[edit.feature], dim=-1)
                x = flat[row, edit.places(num_prompt)]
                flat[row, edit.places(num_prompt)] = x - (x @ unit)[:, None] * unit
        return flat.view_as(out)

    where = sae.cfg.metadata.hook_name_out or sae.cfg.metadata.hook_name
    hooks = [(f"{where}.hook_sae_acts_post", edit_acts), (f"{where}.hook_sae_output", edit_output)]
    with model.saes([sae], use_error_term=True):
        logits: Tensor = model.run_with_hooks(ids, fwd_hooks=hooks)
    return logits.log_softmax(-1)
