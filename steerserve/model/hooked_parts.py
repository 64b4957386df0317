"""Parts of a HookedTransformer that serve many rows at once: attention over a slot cache, layers on packed weights.

TransformerLens' own attention takes one position for a whole batch, turns all cached keys anew at each token, and its
layers lay out their weights anew at each call. What stands in for them here computes the same with each row at its own
position, keys turned once and never repeated for the heads that share them, and weights laid out once; it calls the
same hook points. Norms, blocks, activation functions and everything else are TransformerLens' own code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformer_lens.components.mlps.gated_mlp import GatedMLP
from transformer_lens.components.mlps.mlp import MLP
from transformer_lens.utilities import apply_softcap

from steerserve.model.packed import RowwiseActivation, can_pack, pack_linears

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jaxtyping import Bool, Float, Int
    from transformer_lens import HookedTransformer
    from transformers import Cache

_WHOLE_ROW = ("solu", "solu_ln", "relu", "relu2")
"""Activation functions that are no function of single elements, or that round nowhere."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the tokens of one pass stand, and what they see."""

    masks: Mapping[str, Bool[Tensor, "rows one pos columns"]]
    """By TransformerLens' type of attention, `global` or `local`."""
    turns: Mapping[str, tuple[Float[Tensor, "rows pos one rotary"], Float[Tensor, "rows pos one rotary"]]]
    """Cosines and sines by type of attention; none where positions are not rotary."""
    distances: Float[Tensor, "rows heads pos columns"] | None
    """ALiBi's penalties."""
    cache: Cache | None


class Turns:
    """Cosines and sines of rotary positions, for one type of attention; the tables grow as texts do."""

    def __init__(self, attn: Any) -> None:  # noqa: ANN401 TransformerLens'
        """Take an attention of that type, which knows its base and its scaling."""
        self._attn = attn
        self._cos = self._sin = torch.empty(0)

    def at(self, positions: Int[Tensor, "rows pos"], length: int) -> tuple[Tensor, Tensor]:
        """Return cosines and sines `[rows, pos, 1, rotary]` of positions below `length`."""
        if length > len(self._cos):
            cfg, attn = self._attn.cfg, self._attn
            size = min(max(length, 2 * len(self._cos)), max(length, cfg.n_ctx))
            base = attn._rotary_base()  # noqa: SLF001 local attention may have another
            sin, cos = attn.calculate_sin_cos_rotary(cfg.rotary_dim, size, base=base, dtype=cfg.dtype)
            self._cos, self._sin = cos.to(positions.device), sin.to(positions.device)
        return self._cos[positions, None, :], self._sin[positions, None, :]


class PlacedAttention(nn.Module):
    """TransformerLens' attention, for tokens that stand where a `Placement` says."""

    def __init__(self, attn: Any, layer: int) -> None:  # noqa: ANN401 TransformerLens'
        """Take over the weights of `attn`, which keeps its hook points, its norms and its methods."""
        super().__init__()
        self.inner = attn
        self.layer = layer
        is_grouped = attn.cfg.n_key_value_heads is not None
        keys, values = (("_W_K", "_b_K"), ("_W_V", "_b_V")) if is_grouped else (("W_K", "b_K"), ("W_V", "b_V"))
        self.query = _projection(attn, "W_Q", "b_Q")
        self.key = _projection(attn, *keys)
        self.value = _projection(attn, *values)
        self.out = _linear(attn.W_O.permute(2, 0, 1).flatten(1), attn.b_O)
        _drop(attn, "W_Q", "b_Q", *keys, *values, "W_O", "b_O")

    def forward(
        self,
        query_input: Float[Tensor, "rows pos d_model"],
        key_input: Float[Tensor, "rows pos d_model"],
        value_input: Float[Tensor, "rows pos d_model"],
        past_kv_cache_entry: Placement,
        attention_mask: None = None,  # noqa: ARG002 the block's call has it
    ) -> Float[Tensor, "rows pos d_model"]:
        """Attend; the names are those by which TransformerLens' block calls its attention.

        Source: transformer_lens.components.abstract_attention.AbstractAttention.forward.
        """
        attn, place = self.inner, past_kv_cache_entry
        q, k, v = self._projected(query_input, key_input, value_input)
        if place.turns:
            cos, sin = place.turns[attn.attn_type]
            q, k = attn.hook_rot_q(self._turned(q, cos, sin)), attn.hook_rot_k(self._turned(k, cos, sin))
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if place.cache is not None:
            k, v = place.cache.update(k, v, self.layer)
        scores = self._scores(q, k)
        if place.distances is not None:
            scores += place.distances
        scores = scores.masked_fill(~place.masks[attn.attn_type], -torch.inf)
        pattern = self._pattern(attn.hook_attn_scores(scores)).nan_to_num(0.0)
        pattern = attn.hook_pattern(pattern).to(v.dtype)
        z = (_grouped(pattern, v) @ v).view(*q.shape).transpose(1, 2)
        out: Tensor = self.out(attn.hook_z(z).flatten(-2))
        return out

    def _projected(self, query_input: Tensor, key_input: Tensor, value_input: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values `[rows, pos, heads, d_head]`, normed and clipped where the model does so."""
        attn, cfg = self.inner, self.inner.cfg
        heads = (-1, cfg.d_head)
        q = attn.hook_q(self.query(query_input).unflatten(-1, heads))
        k = attn.hook_k(self.key(key_input).unflatten(-1, heads))
        v = attn.hook_v(self.value(value_input).unflatten(-1, heads))
        if cfg.use_qk_norm:
            q, k = attn._apply_qk_norm(q, attn.q_norm), attn._apply_qk_norm(k, attn.k_norm)  # noqa: SLF001 one head each
        elif attn.q_norm is not None:  # OLMo's are over all heads
            q, k = attn.q_norm(q.flatten(-2)).view_as(q), attn.k_norm(k.flatten(-2)).view_as(k)
        if cfg.clip_qkv is not None:
            q, k, v = (x.clamp(-cfg.clip_qkv, cfg.clip_qkv) for x in (q, k, v))
        return q, k, v

    def _turned(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        rotary = self.inner.cfg.rotary_dim
        turned = x[..., :rotary] * cos + self.inner.rotate_every_two(x[..., :rotary]) * sin
        return torch.cat([turned, x[..., rotary:]], dim=-1)

    def _scores(
        self, q: Float[Tensor, "rows heads pos d_head"], k: Float[Tensor, "rows groups columns d_head"]
    ) -> Float[Tensor, "rows heads pos columns"]:
        cfg = self.inner.cfg
        scores = (_grouped(q, k) @ k.transpose(-1, -2)).view(*q.shape[:-1], -1) / self.inner.attn_scale
        capped: Tensor = apply_softcap(scores, cfg.attn_scores_soft_cap)
        return capped

    def _pattern(self, scores: Float[Tensor, "rows heads pos columns"]) -> Float[Tensor, "rows heads pos columns"]:
        if not self.inner.cfg.use_attention_sinks:
            return scores.softmax(-1)
        sink = self.inner.sinks.view(1, -1, 1, 1).expand(*scores.shape[:-1], 1).to(scores.dtype)
        return torch.cat([scores, sink], dim=-1).softmax(-1)[..., :-1]


class PlacedMLP(nn.Module):
    """TransformerLens' MLP, gated or not, on weights laid out once.

    Source: transformer_lens.components.mlps.mlp and gated_mlp.
    """

    def __init__(self, mlp: Any) -> None:  # noqa: ANN401 TransformerLens'
        """Take over the weights of `mlp`, which keeps its hook points and its norm."""
        super().__init__()
        self.inner = mlp
        self.is_gated = type(mlp) is GatedMLP
        self.has_norm = mlp.cfg.is_layer_norm_activation()
        self.into = _linear(mlp.W_in.T, None if self.is_gated else mlp.b_in)
        self.gate = _linear(mlp.W_gate.T, None) if self.is_gated else None
        self.out = _linear(mlp.W_out.T, mlp.b_out)
        is_elementwise = mlp.cfg.act_fn not in _WHOLE_ROW
        self.act_fn = RowwiseActivation(mlp.act_fn) if is_elementwise else mlp.act_fn
        _drop(mlp, "W_in", "W_out", "b_out", *(["W_gate"] if self.is_gated else ["b_in"]))

    def forward(self, x: Float[Tensor, "rows pos d_model"]) -> Float[Tensor, "rows pos d_model"]:
        """Apply it."""
        mlp = self.inner
        pre = mlp.hook_pre(self.into(x) if self.gate is None else self.gate(x))
        acts = self.act_fn(pre)
        if self.has_norm:
            acts = mlp.ln(mlp.hook_mid(acts))
        elif self.gate is not None:
            acts = acts * mlp.hook_pre_linear(self.into(x)) + mlp.b_in
        out: Tensor = self.out(mlp.hook_post(acts))
        return out


def place_parts(model: HookedTransformer) -> None:
    """Put these parts into a model; MLPs of other kinds, such as mixtures of experts, stay TransformerLens' own."""
    for layer, block in enumerate(model.blocks):
        block.attn = PlacedAttention(block.attn, layer)
        if type(getattr(block, "mlp", None)) in {MLP, GatedMLP}:
            block.mlp = PlacedMLP(block.mlp)
    weight, bias = model.unembed.W_U, model.unembed.b_U
    model.unembed = _linear(weight.T, bias)
    if can_pack(weight.device, weight.dtype):
        pack_linears(model)


def _projection(attn: Any, weight: str, bias: str) -> nn.Linear:  # noqa: ANN401
    """Return all heads' projections of one kind as one layer `d_model -> heads * d_head`."""
    return _linear(attn.get_parameter(weight).transpose(1, 2).flatten(0, 1), attn.get_parameter(bias).flatten())


def _grouped(
    x: Float[Tensor, "rows heads pos some"], shared: Float[Tensor, "rows groups columns d_head"]
) -> Float[Tensor, "rows groups heads_pos some"]:
    """Put heads that share keys and values one below the other, so that these are not repeated for each."""
    return x.reshape(x.shape[0], shared.shape[1], -1, x.shape[-1])


def _linear(weight: Float[Tensor, "d_out d_in"], bias: Float[Tensor, " d_out"] | None) -> nn.Linear:
    d_out, d_in = weight.shape
    layer = nn.Linear(d_in, d_out, bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().contiguous(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return layer


def _drop(module: nn.Module, *names: str) -> None:
    """Forget weights that another module holds now."""
    for name in names:
        module.register_parameter(name, None)
