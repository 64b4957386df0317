"""The other backend: a HookedTransformer of TransformerLens, for checkpoints and dictionaries that need one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformer_lens.components import AbstractAttention
from transformer_lens.utilities import apply_softcap
from transformer_lens.utilities.architectures import POST_NORM_ARCHITECTURES
from transformers import Cache, DynamicCache

from steerserve.core.errors import ModelSourceError
from steerserve.model.fitness import check_fits
from steerserve.model.hook_check import working_points
from steerserve.model.hook_points import HeadsPoint, ReadPoint, StreamPoint
from steerserve.model.hooked_files import load_hooked
from steerserve.model.hooked_parts import PassContext, Rotations, replace_parts
from steerserve.model.lens import LensModel
from steerserve.model.names import (
    ALL_KINDS,
    HOOK_Z,
    LN2_NORMALIZED,
    MLP_IN,
    READ_KINDS,
    RESID_POST,
    RESID_PRE,
    STREAM_INTO_MLP,
)
from steerserve.model.packed import num_weights
from steerserve.model.tokenizer import Tokenizer
from steerserve.model.weights import first_line

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jaxtyping import Float, Int
    from transformer_lens import HookedTransformer

    from steerserve.model.hook_points import HookPoint
    from steerserve.model.source import ModelFiles

_POSITIONS = ("standard", "shortformer", "rotary", "alibi")
_LAYER_TYPES = {"global": "full_attention", "local": "sliding_attention"}
_NUM_TOKENS = 6
_TOLERANCE = {torch.float32: 1e-3}
"""Largest difference from TransformerLens' own logits, as a share of their spread."""
_ROUGH_TOLERANCE = 0.1
"""The same for other number formats."""


class HookedLens(LensModel):
    """A HookedTransformer whose attention and MLPs are replaced for serving."""

    def __init__(
        self, model_id: str, model: HookedTransformer, points: Mapping[str, HookPoint], tokenizer: Tokenizer
    ) -> None:
        """Keep the parts; `load_hooked_lens` builds them."""
        cfg = model.cfg
        self.id = model_id
        self.model = model
        self.tokenizer = tokenizer
        self.num_layers = cfg.n_layers
        self.d_model = cfg.d_model
        self.vocab_size = cfg.d_vocab
        # Beyond the training length, queries and rotations of Qwen 1 depend on the length of the whole text.
        self.max_context = min(cfg.n_ctx, cfg.train_seq_length or cfg.n_ctx)
        attn_types = dict.fromkeys(block.attn.inner.attn_type for block in model.blocks)
        self.layer_types = tuple(_LAYER_TYPES[attn_type] for attn_type in attn_types)
        self.sliding_window = cfg.window_size
        self.takes_additive_mask = False
        self.is_processed = cfg.normalization_type in {"LNPre", "RMSPre"}
        self.device = model.embed.W_E.device
        self.dtype = model.embed.W_E.dtype
        self.readable = tuple(points)
        self.hook_names = tuple(name for name in points if not points[name].is_read_only)
        self._points = points
        self._rotations: dict[str, Rotations] = {}
        if cfg.positional_embedding_type == "rotary":
            self._rotations = {block.attn.inner.attn_type: Rotations(block.attn.inner) for block in model.blocks}
        self._slopes: Float[Tensor, "heads one one"] | None = None
        if cfg.positional_embedding_type == "alibi":
            self._slopes = AbstractAttention.create_alibi_multipliers(cfg.n_heads, self.device)[:, None, None]

    @property
    def weights(self) -> nn.Module:
        """The module that holds the weights."""
        module: nn.Module = self.model
        return module

    @property
    def cache_bytes_per_token(self) -> int:
        """Size of one token's keys and values in all layers."""
        cfg = self.model.cfg
        return int(2 * cfg.n_layers * (cfg.n_key_value_heads or cfg.n_heads) * cfg.d_head * self.dtype.itemsize)

    def forward(self, ids: Int[Tensor, "rows pos"], **kwargs: Any) -> Float[Tensor, "rows kept vocab"]:  # noqa: ANN401 transformers' own
        """Return the logits; the keyword arguments are those of a transformers model."""
        keep = kwargs.pop("logits_to_keep", 0)
        return self._run(ids, keep, **kwargs)

    def run_from(
        self,
        hook_name: str,
        value: Float[Tensor, "rows pos width"],
        ids: Int[Tensor, "rows pos"],
        **kwargs: Any,  # noqa: ANN401 transformers' own
    ) -> Float[Tensor, "rows kept vocab"]:
        """Return the logits of whole rows, without padding or cache, with `value` at a hook point.

        Blocks before a `hook_resid_pre` or `hook_resid_post` are skipped. For a hook point inside a block the whole
        model runs, and `value` replaces its own value.

        Raises:
            KeyError: the model has no such hook point.
        """
        _, layer, kind = hook_name.split(".", 2)
        keep = kwargs.pop("logits_to_keep", 0)
        with self.hooked(hook_name, lambda _: value.to(self.dtype, copy=True)):
            if kind not in {RESID_PRE, RESID_POST}:
                return self._run(ids, keep)
            resid = value.to(self.dtype, copy=True)
            if kind == RESID_PRE:
                return self._run(ids, keep, resid=resid, first=int(layer))
            resid = self.model.blocks[int(layer)].hook_resid_post(resid)
            return self._run(ids, keep, resid=resid, first=int(layer) + 1)

    def new_cache(self) -> Cache:
        """Return an empty cache that grows, for `read`."""
        return DynamicCache()

    def _run(
        self,
        ids: Int[Tensor, "rows pos"],
        logits_to_keep: int | Int[Tensor, " kept"] = 0,
        *,
        resid: Float[Tensor, "rows pos d_model"] | None = None,
        first: int = 0,
        use_cache: bool = False,
        past_key_values: Cache | None = None,
        attention_mask: Any = None,  # noqa: ANN401 a mask, or one for each type of layer
        position_ids: Int[Tensor, "rows pos"] | None = None,
    ) -> Float[Tensor, "rows kept vocab"]:
        """Run from block `first` on, with `resid` before it, or from the embedding if `resid` is None.

        Source: transformer_lens.HookedTransformer.forward.
        """
        model, cfg = self.model, self.model.cfg
        cache = past_key_values if use_cache else None
        if position_ids is None:
            start = 0 if cache is None else int(cache.get_seq_length())
            position_ids = torch.arange(start, start + ids.shape[1], device=self.device).expand_as(ids)
        context = self._context(position_ids, attention_mask, cache)
        embedded: Tensor | None = None
        if cfg.positional_embedding_type in {"standard", "shortformer"}:
            embedded = model.hook_pos_embed(model.pos_embed.W_pos[position_ids])
        is_attention_only = (
            cfg.positional_embedding_type == "shortformer"
        )  # added to keys and queries, not to the stream
        if resid is None:
            resid = model.hook_embed(model.embed(ids.to(self.device)))
            resid = resid if embedded is None or is_attention_only else resid + embedded
        for block in list(model.blocks)[first:]:
            resid = block(
                resid, shortformer_pos_embed=embedded if is_attention_only else None, past_kv_cache_entry=context
            )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        resid = resid[:, kept]
        if cfg.normalization_type is not None:
            resid = model.ln_final(resid)
        logits: Tensor = apply_softcap(model.unembed(resid), cfg.output_logits_soft_cap)
        return logits

    def _context(
        self,
        positions: Int[Tensor, "rows pos"],
        attention_mask: Any,  # noqa: ANN401 a mask, or one for each type of layer
        cache: Cache | None,
    ) -> PassContext:
        attn_types = {block.attn.inner.attn_type for block in self.model.blocks}
        if attention_mask is None:
            length = int(positions[0, -1]) + 1
            columns = torch.arange(length, device=self.device)
            full = (columns <= positions[..., None])[:, None]
            attention_mask = {"full_attention": full}
            if self.sliding_window is not None:
                near = (columns > positions[..., None] - self.sliding_window)[:, None]
                attention_mask["sliding_attention"] = full & near
        elif isinstance(attention_mask, Tensor):
            attention_mask = dict.fromkeys(_LAYER_TYPES.values(), attention_mask)
        masks = {attn_type: attention_mask[_LAYER_TYPES[attn_type]] for attn_type in attn_types}
        length = next(iter(masks.values())).shape[-1]
        clamped = positions.clamp(max=length - 1)  # rows that only fill up a batch are beyond the end
        rotations = {attn_type: table.at(clamped, length) for attn_type, table in self._rotations.items()}
        penalties: Tensor | None = None
        if self._slopes is not None:
            columns = torch.arange(length, device=self.device)
            penalties = self._slopes * (columns - clamped[..., None]).clamp(max=0)[:, None]
        return PassContext(masks, rotations, penalties, cache)

    def _final(self) -> tuple[nn.Module | None, nn.Module]:
        norm = self.model.ln_final if self.model.cfg.normalization_type is not None else None
        return norm, self.model.unembed


@torch.no_grad()
def load_hooked_lens(
    files: ModelFiles, device: torch.device, dtype: torch.dtype, *, process_weights: bool
) -> HookedLens:
    """Build the model from its files.

    Raises:
        ModelSourceError: the model cannot be built, or its architecture is not supported.
    """
    model, eos_ids = load_hooked(files, dtype, process_weights=process_weights)
    _check(files.id, model.cfg)
    model = model.eval().requires_grad_(requires_grad=False)
    if device.type != "cpu":
        check_fits(num_weights(model), device, dtype)
        model.cfg.device = str(device)
        nn.Module.to(model, device)
    tokenizer = Tokenizer.load(
        files.path, eos_ids, max_vocab=model.cfg.d_vocab, trust_remote_code=files.trust_remote_code
    )
    ids = torch.arange(_NUM_TOKENS, device=device)[None] % model.cfg.d_vocab
    try:
        expected = model(ids)
        replace_parts(model)
        model.tokenizer = tokenizer.hf
        lens = HookedLens(files.id, model, _points(model), tokenizer)
        _check_parts(lens, ids, expected)
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        message = f"{files.id} cannot compute as a HookedTransformer: {first_line(error)}"
        raise ModelSourceError(message) from error
    return HookedLens(files.id, model, working_points(_points(model), lens.forward), tokenizer)


def _points(model: HookedTransformer) -> dict[str, HookPoint]:
    """Return the hook points in the order of a forward pass."""
    points: dict[str, HookPoint] = {}
    for layer, block in enumerate(model.blocks):
        for kind in ALL_KINDS:
            name = f"blocks.{layer}.{kind}"
            hook = model.hook_dict.get(name)
            point = _read_point(block, kind) if kind in READ_KINDS else _point(hook, kind, model.cfg)
            if point is not None:
                points[name] = point
    return points


def _point(hook: Any, kind: str, cfg: Any) -> HookPoint | None:  # noqa: ANN401 TransformerLens'
    if hook is None:
        return None
    return HeadsPoint(hook, cfg.n_heads * cfg.d_head) if kind == HOOK_Z else StreamPoint(hook, cfg.d_model)


def _read_point(block: Any, kind: str) -> HookPoint | None:  # noqa: ANN401 TransformerLens'
    """Return the hook point before the MLP. TransformerLens has one of the three always, one on demand, one never."""
    cfg = block.cfg
    if cfg.attn_only:
        return None
    if kind == MLP_IN:
        return ReadPoint(block, block.mlp, cfg.d_model)
    if cfg.original_architecture in POST_NORM_ARCHITECTURES:
        return None  # the norm comes after the MLP
    if kind == STREAM_INTO_MLP:
        return ReadPoint(block, block.ln2, cfg.d_model)
    hook = getattr(block.ln2, LN2_NORMALIZED.rpartition(".")[2], None)
    return None if hook is None else StreamPoint(hook, cfg.d_model, is_read_only=True)


def _check(model_id: str, cfg: Any) -> None:  # noqa: ANN401 HookedTransformerConfig
    """Refuse models that cannot generate, or cannot with rows at different positions."""
    refused = {
        f"its positions are {cfg.positional_embedding_type!r}, and this server supports {', '.join(_POSITIONS)}": (
            cfg.positional_embedding_type not in _POSITIONS
        ),
        f"its attention is {cfg.attention_dir}, and text generation needs causal attention": cfg.attention_dir
        != "causal",
        "its input and output vocabularies differ": cfg.d_vocab != cfg.d_vocab_out,
        "its weights have 4 bits": cfg.load_in_4bit,
    }
    for reason, is_refused in refused.items():
        if is_refused:
            raise ModelSourceError(f"{model_id} cannot be served: {reason}.")


def _check_parts(lens: HookedLens, ids: Int[Tensor, "rows pos"], expected: Float[Tensor, "rows pos vocab"]) -> None:
    """Refuse a model whose logits differ from those before its parts were replaced."""
    worst = float((lens.forward(ids).float() - expected.float()).abs().max() / expected.float().std())
    if not worst <= _TOLERANCE.get(lens.dtype, _ROUGH_TOLERANCE):
        message = (
            f"{lens.id} computes other logits here than in HookedTransformer itself (they differ by {worst:.2g} of "
            "their spread), so it has parts that this server does not support."
        )
        raise ModelSourceError(message)
