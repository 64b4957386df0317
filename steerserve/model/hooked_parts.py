"""Parts of a HookedTransformer that serve many rows at once: attention over a slot cache, layers on packed weights.

TransformerLens' own attention takes one position for a whole batch and rotates all cached keys again at each token, and
its layers lay out their weights again at each call. The parts here compute the same values, with each row at its own
position, keys rotated once and not repeated for the heads that share them, and weights laid out once. They call the
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
"""Activation functions that do not work element by element, or that never round."""


@dataclass(frozen=True, slots=True)
class PassContext:
    """Positions of the tokens of one pass, and the columns that they see."""

    masks: Mapping[str, Bool[Tensor, "rows one pos columns"]]
    """Masks by TransformerLens' type of attention, `global` or `local`."""
    rotations: Mapping[str, tuple[Float[Tensor, "rows pos one rotary"], Float[Tensor, "rows pos one rotary"]]]
    """Cosines and sines by type of attention; empty if positions are not rotary."""
    penalties: Float[Tensor, "rows heads pos columns"] | None
    """ALiBi's penalties on distant columns; None for other positions."""
    cache: Cache | None


class Rotations:
    """Cosines and sines of rotary positions, for one type of attention; the tables grow with the longest text."""

    def __init__(self, attn: Any) -> None:  # noqa: ANN401 TransformerLens'
        """Compute the tables with an attention of that type, which has the base and the scaling."""
        self._attn = attn
        self._cos = self._sin = torch.empty(0)

    def at(self, positions: Int[Tensor, "rows pos"], length: int) -> tuple[Tensor, Tensor]:
        """Return cosines and sines `[rows, pos, 1, rotary]` of positions below `length`."""
        if length > len(self._cos):
            cfg, attn = self._attn.cfg, self._attn
            size = min(max(length, 2 * len(self._cos)), max(length, cfg.n_ctx))
            base = attn._rotary_base()  # noqa: SLF001 local attention may have another base
            sin, cos = attn.calculate_sin_cos_rotary(cfg.rotary_dim, size, base=base, dtype=cfg.dtype)
            self._cos, self._sin = cos.to(positions.device), sin.to(positions.device)
        return self._cos[positions, None, :], self._sin[positions, None, :]


class BatchedAttention(nn.Module):
    """TransformerLens' attention, for rows at different positions."""

    def __init__(self, attn: Any, layer: int) -> None:  # noqa: ANN401 TransformerLens'
        """Take over the weights of `attn`, which keeps its hook points, norms and methods."""
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
        past_kv_cache_entry: PassContext,
        attention_mask: None = None,  # noqa: ARG002 the block passes it
    ) -> Float[Tensor, "rows pos d_model"]:
        """Compute the attention's output. The parameters have the names that TransformerLens' block uses.

        Source: transformer_lens.components.abstract_attention.AbstractAttention.forward.
        """
        attn, context = self.inner, past_kv_cache_entry
        q, k, v = self._projected(query_input, key_input, value_input)
        if context.rotations:
            cos, sin = context.rotations[attn.attn_type]
            q, k = attn.hook_rot_q(self._rotated(q, cos, sin)), attn.hook_rot_k(self._rotated(k, cos, sin))
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if context.cache is not None:
            k, v = context.cache.update(k, v, self.layer)
        scores = self._scores(q, k)
        if context.penalties is not None:
            scores += context.penalties
        scores = scores.masked_fill(~context.masks[attn.attn_type], -torch.inf)
        pattern = self._pattern(attn.hook_attn_scores(scores)).nan_to_num(0.0)
        pattern = attn.hook_pattern(pattern).to(v.dtype)
        z = (_grouped(pattern, v) @ v).view(*q.shape).transpose(1, 2)
        out: Tensor = self.out(attn.hook_z(z).flatten(-2))
        return out

    def _projected(self, query_input: Tensor, key_input: Tensor, value_input: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values `[rows, pos, heads, d_head]`, normed and clipped as the model does."""
        attn, cfg = self.inner, self.inner.cfg
        heads = (-1, cfg.d_head)
        q = attn.hook_q(self.query(query_input).unflatten(-1, heads))
        k = attn.hook_k(self.key(key_input).unflatten(-1, heads))
        v = attn.hook_v(self.value(value_input).unflatten(-1, heads))
        if cfg.use_qk_norm:
            q, k = attn._apply_qk_norm(q, attn.q_norm), attn._apply_qk_norm(k, attn.k_norm)  # noqa: SLF001 one norm for each head
        elif attn.q_norm is not None:  # OLMo has one norm over all heads
            q, k = attn.q_norm(q.flatten(-2)).view_as(q), attn.k_norm(k.flatten(-2)).view_as(k)
        if cfg.clip_qkv is not None:
            q, k, v = (x.clamp(-cfg.clip_qkv, cfg.clip_qkv) for x in (q, k, v))
        return q, k, v

    def _rotated(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        rotary = self.inner.cfg.rotary_dim
        rotated = x[..., :rotary] * cos + self.inner.rotate_every_two(x[..., :rotary]) * sin
        return torch.cat([rotated, x[..., rotary:]], dim=-1)

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


class BatchedMLP(nn.Module):
    """TransformerLens' MLP, gated or not, with weights laid out once.

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
        """Return the MLP's output."""
        mlp = self.inner
        pre = mlp.hook_pre(self.into(x) if self.gate is None else self.gate(x))
        acts = self.act_fn(pre)
        if self.has_norm:
            acts = mlp.ln(mlp.hook_mid(acts))
        elif self.gate is not None:
            acts = acts * mlp.hook_pre_linear(self.into(x)) + mlp.b_in
        out: Tensor = self.out(mlp.hook_post(acts))
        return out


def replace_parts(model: HookedTransformer) -> None:
    """Replace a model's attention and MLPs; other MLPs, such as mixtures of experts, stay TransformerLens' own."""
    for layer, block in enumerate(model.blocks):
        block.attn = BatchedAttention(block.attn, layer)
        if type(getattr(block, "mlp", None)) in {MLP, GatedMLP}:
            block.mlp = BatchedMLP(block.mlp)
    weight, bias = model.unembed.W_U, model.unembed.b_U
    model.unembed = _linear(weight.T, bias)
    if can_pack(weight.device, weight.dtype):
        pack_linears(model)


def _projection(attn: Any, weight: str, bias: str) -> nn.Linear:  # noqa: ANN401
    """Return all heads' projections of one kind as one layer `d_model -> heads * d_head`."""
    return _linear(attn.get_parameter(weight).transpose(1, 2).flatten(0, 1), attn.get_parameter(bias).flatten())


def _grouped(
    x: Float[Tensor, "rows heads pos width"], shared: Float[Tensor, "rows groups columns d_head"]
) -> Float[Tensor, "rows groups heads_pos width"]:
    """Join the heads that share keys and values into one dimension, so that keys and values are not repeated."""
    return x.reshape(x.shape[0], shared.shape[1], -1, x.shape[-1])


def _linear(weight: Float[Tensor, "d_out d_in"], bias: Float[Tensor, " d_out"] | None) -> nn.Linear:
    d_out, d_in = weight.shape
    layer = nn.Linear(d_in, d_out, bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().contiguous(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return layer


def _drop(module: nn.Module, *names: str) -> None:
    """Remove weights that another module has taken over."""
    for name in names:
        module.register_parameter(name, None)
