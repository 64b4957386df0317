"""The oracle: what a steered generation must be, straight from api.md section 2.2, with no cache, no batch, no plan.

Plain transformers, SAELens' own encode and decode, one forward pass over everything for each token.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch
from sae_lens import SAE
from torch import Tensor
from transformers import AutoModelForCausalLM

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    Steering = dict[str, Any] | list[dict[str, Any]] | None


class Oracle:
    """One model and its dictionaries; `median_norms` has one for each dictionary and each hook point by name."""

    def __init__(
        self, model: Path, dictionaries: Mapping[str, Path], median_norms: Mapping[str, float], special: set[int]
    ) -> None:
        self.model: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="eager")
        self.model.eval()
        self.saes: dict[str, Any] = {
            name: SAE.load_from_disk(path, dtype="float32") for name, path in dictionaries.items()
        }
        self.median_norms = median_norms
        self.special = special

    @torch.no_grad()
    def generate(self, prompt: Sequence[int], steering: Steering, num_tokens: int) -> tuple[list[int], Tensor]:
        """Return the greedy tokens and the logits `[num_tokens, vocab]` that chose them."""
        ids, rows = list(prompt), []
        for _ in range(num_tokens):
            rows.append(self.logits(ids, len(prompt), steering)[-1])
            ids.append(int(rows[-1].argmax()))
        return ids[len(prompt) :], torch.stack(rows)

    @torch.no_grad()
    def logits(self, ids: Sequence[int], num_prompt: int, steering: Steering) -> Tensor:
        """Return the logits `[pos, vocab]` of a text whose first `num_prompt` tokens are the prompt."""
        full = steering if isinstance(steering, dict) else {"edits": steering or []}
        by_hook: dict[str, list[dict[str, Any]]] = {}
        for edit in full["edits"]:
            by_hook.setdefault(self._hook_name(edit), []).append(edit)
        with contextlib.ExitStack() as stack:
            for hook_name, edits in by_hook.items():
                rule = (ids, num_prompt, edits, full.get("strength", 1.0))
                stack.enter_context(self._hooked(hook_name, rule))
            logits: Tensor = self.model(torch.tensor([ids]), use_cache=False).logits[0]
        return logits

    def edited(self, x: Tensor, rule: tuple[Sequence[int], int, list[dict[str, Any]], float]) -> Tensor:
        """Return the stream `[pos, d_model]` after all edits of one hook point, which all read the stream before."""
        ids, num_prompt, edits, strength = rule
        out = x.clone()
        for edit in edits:
            chosen = self._chosen(x, ids, num_prompt, edit)
            out += strength * self._change(x, edit) * chosen[:, None]
        return out

    def _change(self, x: Tensor, edit: dict[str, Any]) -> Tensor:
        mode, s = edit.get("mode", "add"), float(edit.get("scale", 0.0))
        vector = torch.tensor(edit["vector"]["values"]) if "vector" in edit else None
        sae: Any = None if vector is not None else self.saes[edit.get("dictionary", next(iter(self.saes)))]
        if mode == "remove":
            direction: Tensor = vector if vector is not None else sae.W_dec[edit["feature"]]
            unit = direction / direction.norm()
            away: Tensor = -(x @ unit)[:, None] * unit
            return away
        if vector is not None:
            return s * vector.expand_as(x)
        heads = x.unflatten(-1, (4, -1)) if sae.cfg.reshape_activations == "hook_z" else x
        acts = sae.encode(heads)
        f = acts[:, edit["feature"]]
        df = {
            "add": torch.full_like(f, s),
            "clamp": s - f,
            "multiply": (s - 1) * f,
            "ablate": -f,
            "floor": (s - f).clamp(min=0),
            "ceiling": (s - f).clamp(max=0),
        }[mode]
        after = acts.clone()
        after[:, edit["feature"]] = f + df
        change: Tensor = sae.decode(after) - sae.decode(acts)
        return change.reshape(x.shape)

    def _chosen(self, x: Tensor, ids: Sequence[int], num_prompt: int, edit: dict[str, Any]) -> Tensor:
        """Return which tokens the edit means and may touch."""
        positions, start, stop = edit.get("positions", "all"), edit.get("start", 0), edit.get("stop", 1 << 40)
        chosen = torch.zeros(len(ids), dtype=torch.bool)
        for place, token_id in enumerate(ids):
            if place < num_prompt:
                means = positions != "generated"
            else:
                means = positions != "prompt" and start <= place - num_prompt < stop
            chosen[place] = means and (edit.get("special_tokens", False) or token_id not in self.special)
        if not edit.get("special_tokens", False):
            median = self.median_norms[
                self._hook_name(edit) if "vector" in edit else edit.get("dictionary", next(iter(self.saes)))
            ]
            chosen &= x.norm(dim=-1) <= 5 * median
        return chosen

    def _hook_name(self, edit: dict[str, Any]) -> str:
        if "vector" in edit:
            return str(edit["vector"]["hook"])
        return str(self.saes[edit.get("dictionary", next(iter(self.saes)))].cfg.metadata.hook_name)

    @contextlib.contextmanager
    def _hooked(self, hook_name: str, rule: Any) -> Iterator[None]:  # noqa: ANN401 passed on to `edited`
        _, layer, kind = hook_name.split(".", 2)
        body = self.model.base_model
        block = (body.h if hasattr(body, "h") else body.layers)[int(layer)]
        module, is_before = self._module(block, kind)
        changes: list[Tensor] = []

        def before(_: object, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            edited = self.edited(args[0][0], rule)[None]
            changes.append(edited - args[0])
            return (edited, *args[1:])

        def after(_: object, __: object, out: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
            if isinstance(out, Tensor):
                return self.edited(out[0], rule)[None]
            return (self.edited(out[0][0], rule)[None], *out[1:])

        def carry(_: object, __: object, out: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
            """Add what the MLP's norm was given in excess to the stream after the block."""
            return out + changes.pop() if isinstance(out, Tensor) else (out[0] + changes.pop(), *out[1:])

        handles = [module.register_forward_pre_hook(before) if is_before else module.register_forward_hook(after)]
        if kind == "hook_resid_mid":
            handles.append(block.register_forward_hook(carry, prepend=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @staticmethod
    def _module(block: Any, kind: str) -> tuple[Any, bool]:  # noqa: ANN401 transformers' own
        """Return the module of a Llama or GPT-2 block that a hook point belongs to, and whether it lies before it."""
        is_gpt2 = hasattr(block, "ln_2")
        attention = block.attn if is_gpt2 else block.self_attn
        return {
            "hook_resid_pre": (block, True),
            "attn.hook_z": (attention.c_proj if is_gpt2 else attention.o_proj, True),
            "hook_attn_out": (attention, False),
            "hook_resid_mid": (block.ln_2 if is_gpt2 else block.post_attention_layernorm, True),
            "hook_mlp_out": (block.mlp, False),
            "hook_resid_post": (block, False),
        }[kind]
