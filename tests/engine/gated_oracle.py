"""The oracle with gates, ramps and transcoders: what a request's tokens must be where edits go by what lies earlier."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch

from tests.oracle import Oracle

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from tests.oracle import Steering

KINDS = [
    "hook_resid_pre",
    "attn.hook_z",
    "hook_attn_out",
    "hook_resid_mid",
    "hook_mlp_in",
    "ln2.hook_normalized",
    "mlp.hook_in",
    "hook_mlp_out",
    "hook_resid_post",
]


class GatedOracle(Oracle):
    """Keeps what every hook point holds before its edits, for those that come later."""

    seen: dict[str, Tensor]

    @torch.no_grad()
    def logits(self, ids: Sequence[int], num_prompt: int, steering: Steering) -> Tensor:
        """Return the logits `[pos, vocab]` of a text whose first `num_prompt` tokens are the prompt."""
        full = steering if isinstance(steering, dict) else {"edits": steering or []}
        by_hook: dict[str, list[dict[str, Any]]] = {}
        for edit in full["edits"]:
            by_hook.setdefault(self._hook_name(edit), []).append(edit)
            for name in self._read_hook_names(edit):
                by_hook.setdefault(name, [])
        self.seen = {}
        with contextlib.ExitStack() as stack:
            for name in sorted(by_hook, key=_depth):
                rule = (name, ids, num_prompt, by_hook[name], full.get("strength", 1.0))
                stack.enter_context(self._hooked(name, rule))
            logits: Tensor = self.model(torch.tensor([ids]), use_cache=False).logits[0]
        return logits

    def edited(self, x: Tensor, rule: Any) -> Tensor:  # noqa: ANN401 the name before what the base class has
        """Return the stream after the edits of one hook point, and keep what it was."""
        name, ids, num_prompt, edits, strength = rule
        self.seen[name] = _normalized(x) if name.endswith("hook_normalized") else x.clone()
        out = x.clone()
        for edit in edits:
            chosen = self._chosen(x, ids, num_prompt, edit) & self.passes(edit)
            factor = _ramp(len(ids), num_prompt, edit) * chosen
            out += strength * self._change(x, edit) * factor[:, None]
        return out

    def passes(self, edit: dict[str, Any]) -> Tensor:
        """Return at which tokens the gate is open."""
        gate = edit.get("when")
        if gate is None:
            return torch.ones((), dtype=torch.bool)
        f = self._encoded(gate)[:, gate["feature"]]
        open_at: Tensor = f > gate["above"] if "above" in gate else f < gate["below"]
        return open_at

    def _change(self, x: Tensor, edit: dict[str, Any]) -> Tensor:
        if "vector" in edit or edit.get("mode") == "remove" or not self._is_transcoder(edit):
            return super()._change(x, edit)
        f = self._encoded(edit)[:, edit["feature"]]
        s = float(edit.get("scale", 0.0))
        df = {
            "add": torch.full_like(f, s),
            "clamp": s - f,
            "multiply": (s - 1) * f,
            "ablate": -f,
            "floor": (s - f).clamp(min=0),
            "ceiling": (s - f).clamp(max=0),
        }[edit.get("mode", "add")]
        change: Tensor = df[:, None] * self._sae(edit).W_dec[edit["feature"]]
        return change

    def _encoded(self, named: dict[str, Any]) -> Tensor:
        acts: Tensor = self._sae(named).encode(self.seen[self._sae(named).cfg.metadata.hook_name])
        return acts

    def _sae(self, named: dict[str, Any]) -> Any:  # noqa: ANN401 SAELens' own
        return self.saes[named.get("dictionary", next(iter(self.saes)))]

    def _is_transcoder(self, named: dict[str, Any]) -> bool:
        return bool(self._sae(named).cfg.metadata.hook_name_out)

    def _hook_name(self, edit: dict[str, Any]) -> str:
        if "vector" not in edit and self._is_transcoder(edit):
            return str(self._sae(edit).cfg.metadata.hook_name_out)
        return super()._hook_name(edit)

    def _read_hook_names(self, edit: dict[str, Any]) -> Iterator[str]:
        for named in (edit, edit.get("when")):
            if named is not None and "feature" in named:
                yield str(self._sae(named).cfg.metadata.hook_name)

    @staticmethod
    def _module(block: Any, kind: str) -> tuple[Any, bool]:  # noqa: ANN401 transformers' own
        if kind == "mlp.hook_in":
            return block.mlp, True
        return Oracle._module(
            block, {"hook_mlp_in": "hook_resid_mid", "ln2.hook_normalized": "hook_resid_mid"}.get(kind, kind)
        )


def _depth(hook_name: str) -> tuple[int, int]:
    _, block, kind = hook_name.split(".", 2)
    return int(block), KINDS.index(kind)


def _ramp(num_tokens: int, num_prompt: int, edit: dict[str, Any]) -> Tensor:
    """Return what each token's change is multiplied with."""
    if not edit.get("ramp"):
        return torch.ones(num_tokens)
    index = torch.arange(num_tokens) - num_prompt
    factor: Tensor = (index - edit.get("start", 0) + 1) / edit["ramp"]
    return factor.clamp(max=1.0)


def _normalized(x: Tensor) -> Tensor:
    """Divide by the root mean square, as a Llama's norm does before its weights."""
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
