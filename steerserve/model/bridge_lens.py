"""The default backend: a TransformerLens bridge whose blocks run transformers' own code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from transformer_lens.model_bridge.generalized_components import OpaqueBlockBridge
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
from transformers import Cache, DynamicCache

from steerserve.core.errors import ModelSourceError
from steerserve.model.fitness import check_kind, check_layers, check_memory
from steerserve.model.hook_check import working_points
from steerserve.model.hook_locations import find_points, inner_locations
from steerserve.model.lens import LensModel
from steerserve.model.packed import can_pack, pack_linears, wrap_activations
from steerserve.model.resume import find_skips, skipping
from steerserve.model.tokenizer import Tokenizer
from steerserve.model.weights import eos_ids, first_line, load_config, load_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch
    from jaxtyping import Float, Int
    from transformer_lens.model_bridge import TransformerBridge

    from steerserve.model.hook_points import HookPoint
    from steerserve.model.source import ModelFiles


class BridgeLens(LensModel):
    """A TransformerLens bridge whose blocks are transformers' own."""

    def __init__(
        self,
        model_id: str,
        hf_model: nn.Module,
        bridge: TransformerBridge,
        points: Mapping[str, HookPoint],
        tokenizer: Tokenizer,
    ) -> None:
        """Keep the parts; `load_lens` builds them."""
        self.id = model_id
        self.hf_model = hf_model
        self.bridge = bridge
        self.tokenizer = tokenizer
        config: Any = hf_model.config
        text_config = config.get_text_config()
        self.num_layers: int = text_config.num_hidden_layers
        self.d_model: int = text_config.hidden_size
        self.vocab_size: int = text_config.vocab_size
        self.max_context: int = getattr(text_config, "max_position_embeddings", None) or 1 << 20
        self.layer_types: tuple[str, ...] = tuple(dict.fromkeys(getattr(text_config, "layer_types", None) or ()))
        self.takes_additive_mask: bool = config._attn_implementation == "eager"  # noqa: SLF001 not public
        self.sliding_window: int | None = getattr(text_config, "sliding_window", None)
        first = next(hf_model.parameters())
        self.device: torch.device = first.device
        self.dtype: torch.dtype = first.dtype
        self._points = points
        self._skips: dict[str, Mapping[nn.Module, Callable[..., Any]]] = {}
        self.readable: tuple[str, ...] = tuple(points)
        self.hook_names: tuple[str, ...] = tuple(name for name in points if not points[name].is_read_only)

    @property
    def weights(self) -> nn.Module:
        """The module that holds the weights."""
        return self.hf_model

    @property
    def cache_bytes_per_token(self) -> int:
        """Size of one token's keys and values in all layers."""
        whole: Any = self.hf_model.config
        config = whole.get_text_config()
        num_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        d_head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return int(2 * self.num_layers * num_heads * d_head * self.dtype.itemsize)

    def forward(self, ids: Int[Tensor, "rows pos"], **kwargs: Any) -> Float[Tensor, "rows kept vocab"]:  # noqa: ANN401 transformers' own
        """Return the logits; the keyword arguments are those of the transformers model."""
        logits: Tensor = self.hf_model(input_ids=ids, **kwargs).logits
        return logits

    def run_from(
        self,
        hook_name: str,
        value: Float[Tensor, "rows pos width"],
        ids: Int[Tensor, "rows pos"],
        **kwargs: Any,  # noqa: ANN401 transformers' own
    ) -> Float[Tensor, "rows kept vocab"]:
        """Return the logits of whole rows, without padding or cache, with `value` at a hook point.

        Blocks before a `hook_resid_pre` or `hook_resid_post` are skipped if the architecture allows it, which is tested
        at the first use of each hook point. Otherwise the whole model runs, and `value` replaces its own value.

        Raises:
            KeyError: the model has no such hook point.
        """
        if hook_name not in self._skips:
            self._skips[hook_name] = find_skips(self, hook_name)
        # A copy, as some blocks add to the stream in place.
        with self.hooked(hook_name, lambda _: value.to(self.dtype, copy=True)), skipping(self._skips[hook_name]):
            return self.forward(ids, use_cache=False, **kwargs)

    def new_cache(self) -> Cache:
        """Return an empty cache that grows, for `read`."""
        return DynamicCache(config=self.hf_model.config)

    def _final(self) -> tuple[nn.Module | None, nn.Module]:
        norm = getattr(self.bridge, "ln_final", None)
        return getattr(norm, "original_component", None), self.bridge.unembed.original_component


def load_bridge_lens(files: ModelFiles, target: torch.device, kind: torch.dtype) -> BridgeLens:
    """Build the model from its files, on a device and in a number format.

    Raises:
        ModelSourceError: the architecture is not supported, the files are damaged, or the memory is too small.
    """
    config = load_config(files)
    check_kind(files, config)
    check_layers(config)
    check_memory(files.path, config, target, kind)
    hf_model = load_weights(files, kind)
    attention = hf_model.config._attn_implementation  # noqa: SLF001 not public
    hf_model = hf_model.eval().requires_grad_(requires_grad=False).to(target)
    if can_pack(target, kind):
        pack_linears(hf_model)
        wrap_activations(hf_model)
    bridge, points = _build_bridge(files, hf_model)
    # Some adapters switch to eager attention for hook points inside it. This bridge has none there.
    hf_model.set_attn_implementation(attention)
    tokenizer = Tokenizer.load(
        files.path,
        eos_ids(hf_model),
        max_vocab=hf_model.config.get_text_config().vocab_size,
        trust_remote_code=files.trust_remote_code,
    )
    bridge.tokenizer = tokenizer.hf
    points = working_points(points, lambda ids: hf_model(input_ids=ids.to(target), use_cache=False))
    return BridgeLens(files.id, hf_model, bridge, points, tokenizer)


def _build_bridge(files: ModelFiles, hf_model: Any) -> tuple[TransformerBridge, dict[str, HookPoint]]:  # noqa: ANN401
    """Build the bridge with opaque blocks; return it with the hook points that the adapter's own blocks would have."""
    replaced: list[Any] = []

    def opaque(adapter: Any) -> None:  # noqa: ANN401
        blocks = adapter.component_mapping["blocks"]
        replaced.append(blocks)
        adapter.component_mapping["blocks"] = OpaqueBlockBridge(name=blocks.name)

    architecture = type(hf_model).__name__
    try:
        bridge = build_bridge_from_module(
            hf_model, architecture, hf_config=hf_model.config, model_name=files.id, post_adapter_hook=opaque
        )
    except (ValueError, KeyError, AttributeError, NotImplementedError) as error:
        message = f"TransformerLens does not support the architecture {architecture} of {files.id}: {first_line(error)}"
        raise ModelSourceError(message) from error
    d_model = hf_model.config.get_text_config().hidden_size
    return bridge, find_points(bridge.hook_dict, bridge.blocks, inner_locations(replaced[0]), d_model)
