"""The served model and its hook points by name: what every backend offers, and the usual one.

That is a TransformerLens bridge whose blocks run transformers' own code. The other, a HookedTransformer, is in
`hooked_lens`.
"""

from __future__ import annotations

import contextlib
import functools
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformer_lens.model_bridge.generalized_components import OpaqueBlockBridge
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
from transformer_lens.supported_models import MODEL_ALIASES
from transformers import DynamicCache
from transformers.utils import logging as transformers_logging

from steerserve.core.errors import ModelSourceError
from steerserve.model.fitness import check_kind, check_layers, check_memory, free_bytes
from steerserve.model.hook_check import working_points
from steerserve.model.hook_names import describe_hook_names
from steerserve.model.hook_points import find_points, inner_sources
from steerserve.model.packed import can_pack, num_weights, pack_linears, wrap_activations
from steerserve.model.resume import find_skips, skipping
from steerserve.model.source import is_hooked_folder
from steerserve.model.tokenizer import Tokenizer
from steerserve.model.unembedding import find_unembedding
from steerserve.model.weights import eos_ids, first_line, load_config, load_weights, pick_device, pick_dtype

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from jaxtyping import Float, Int
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import Cache

    from steerserve.core.config import Backend
    from steerserve.model.hook_points import HookFn, Point
    from steerserve.model.source import ModelFiles
    from steerserve.model.unembedding import Unembedding


class _AllReadError(Exception):
    """Ends a forward pass once all values that were wanted are read."""


class LensModel(ABC):
    """A causal language model with named hook points. One thread uses it at a time."""

    id: str
    tokenizer: Tokenizer
    num_layers: int
    d_model: int
    vocab_size: int
    max_context: int
    device: torch.device
    dtype: torch.dtype
    layer_types: tuple[str, ...]
    """The kinds of attention, in transformers' words, each once; none where there is only full attention."""
    sliding_window: int | None
    """Tokens that sliding attention sees."""
    takes_additive_mask: bool
    """Whether attention wants a mask of numbers to add, not of booleans."""
    is_processed: bool = False
    """Whether norms are folded into the weights behind them, which TransformerLens does along with centring."""
    readable: tuple[str, ...]
    """Hook points whose values can be read, in the order in which a forward pass reaches them."""
    hook_names: tuple[str, ...]
    """Those that can be edited too, in the same order."""
    _points: Mapping[str, Point]

    @property
    @abstractmethod
    def weights(self) -> nn.Module:
        """The module that holds the weights."""

    @property
    @abstractmethod
    def cache_bytes_per_token(self) -> int:
        """Size of one token's keys and values in all layers."""

    @abstractmethod
    def forward(self, ids: Int[Tensor, "rows pos"], **kwargs: Any) -> Float[Tensor, "rows kept vocab"]:  # noqa: ANN401 transformers' own
        """Return the logits; keyword arguments are those of a transformers model."""

    @abstractmethod
    def run_from(
        self,
        hook_name: str,
        value: Float[Tensor, "rows pos width"],
        ids: Int[Tensor, "rows pos"],
        **kwargs: Any,  # noqa: ANN401 transformers' own
    ) -> Float[Tensor, "rows kept vocab"]:
        """Return the logits of whole rows, without padding or cache, with `value` at a hook point.

        Blocks before it are not computed where that is possible. Other hook points before this one see nothing of
        worth.

        Args:
            hook_name: Where to begin.
            value: What is there; kept as it is.
            ids: The tokens, for what the model takes from them beside the stream.
            kwargs: Those of a transformers model, such as `logits_to_keep`.

        Raises:
            KeyError: the model has no such hook point.
        """

    @abstractmethod
    def new_cache(self) -> Cache:
        """Return an empty cache that grows, for `read`."""

    @functools.cached_property
    def unembedding(self) -> Unembedding:
        """From the residual stream behind the last block to the logits, without what is not linear in it."""
        norm, head = self._final()
        return find_unembedding(norm, head, torch.zeros(self.d_model, dtype=self.dtype, device=self.device))

    @abstractmethod
    def _final(self) -> tuple[nn.Module | None, nn.Module]:
        """Return the final norm, None where there is none, and the unembedding."""

    @property
    def weight_bytes(self) -> int:
        """Size of its weights in memory."""
        return num_weights(self.weights) * self.dtype.itemsize

    def free_bytes(self) -> int:
        """Return the free memory of the model's device."""
        return free_bytes(self.device)

    @property
    def offered_hooks(self) -> str:
        """The hook points in a few words, for messages."""
        return describe_hook_names(self.hook_names)

    def width(self, hook_name: str) -> int:
        """Return the size of the vectors at a hook point: `d_model`, or heads times head size at `attn.hook_z`.

        Raises:
            KeyError: the model has no such hook point.
        """
        return self._points[hook_name].width

    @contextlib.contextmanager
    def hooked(self, hook_name: str, fn: HookFn) -> Iterator[None]:
        """Call `fn(x [rows, pos, width])` at a hook point while the context is open.

        What `fn` returns replaces the value; None leaves it.
        """
        detach = self.attach(hook_name, fn)
        try:
            yield
        finally:
            detach()

    def attach(self, hook_name: str, fn: HookFn) -> Callable[[], None]:
        """Call `fn` at a hook point from now on; return what ends that.

        Raises:
            KeyError: the model has no such hook point.
        """
        return self._points[hook_name].attach(fn)

    @torch.inference_mode()
    def unembed(self, directions: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows vocab"]:
        """Return what directions in the residual stream add to the logits, up to the final norm's scale."""
        return self.unembedding.logits(directions.to(self.device, self.dtype)).float()

    @torch.inference_mode()
    def read(
        self,
        ids: Int[Tensor, "rows pos"],
        hook_names: Iterable[str],
        cache: Any = None,  # noqa: ANN401 any of transformers' own
    ) -> dict[str, Float[Tensor, "rows pos width"]]:
        """Return the values at some hook points, of rows without padding.

        The model runs only as far as the last of them. With `cache` the rows go on where it ends, and it grows.

        Raises:
            KeyError: the model has no such hook point.
        """
        wanted = frozenset(hook_names)
        found: dict[str, Tensor] = {}

        def keep(value: Tensor, hook_name: str) -> None:
            found[hook_name] = value.clone()  # some blocks add to it in place
            if len(found) == len(wanted):
                raise _AllReadError

        with contextlib.ExitStack() as stack, contextlib.suppress(_AllReadError):
            for hook_name in wanted:
                stack.enter_context(self.hooked(hook_name, functools.partial(keep, hook_name=hook_name)))
            past = {} if cache is None else {"past_key_values": cache}
            self.forward(ids.to(self.device), use_cache=cache is not None, **past)
        return found


class BridgeLens(LensModel):
    """A bridge of TransformerLens whose blocks are transformers' own."""

    def __init__(
        self,
        model_id: str,
        hf_model: nn.Module,
        bridge: TransformerBridge,
        points: Mapping[str, Point],
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
        self.takes_additive_mask: bool = config._attn_implementation == "eager"  # noqa: SLF001 no public reader
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
        """Return the logits; keyword arguments are those of the transformers model."""
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

        Blocks before a `hook_resid_pre` or `hook_resid_post` are not computed where the architecture allows it; it is
        tried at the first use of each hook point. Elsewhere the whole model runs, with the value put in its place.

        Raises:
            KeyError: the model has no such hook point.
        """
        if hook_name not in self._skips:
            self._skips[hook_name] = find_skips(self, hook_name)
        # Some blocks add to the stream in place, so they get a copy.
        with self.hooked(hook_name, lambda _: value.to(self.dtype, copy=True)), skipping(self._skips[hook_name]):
            return self.forward(ids, use_cache=False, **kwargs)

    def new_cache(self) -> Cache:
        """Return an empty cache that grows, for `read`."""
        return DynamicCache(config=self.hf_model.config)

    def _final(self) -> tuple[nn.Module | None, nn.Module]:
        norm = getattr(self.bridge, "ln_final", None)
        return getattr(norm, "original_component", None), self.bridge.unembed.original_component


def load_lens(
    files: ModelFiles,
    *,
    device: str = "auto",
    dtype: torch.dtype | str = "auto",
    backend: Backend = "bridge",
    process_weights: bool = True,
) -> LensModel:
    """Build the model from its files.

    Args:
        files: The files; those that only a HookedTransformer can read become one whatever `backend` says.
        device: `auto` takes CUDA where there is a device.
        dtype: `auto` is bfloat16 on CUDA and float32 on a CPU.
        backend: What runs the model.
        process_weights: Whether a HookedTransformer gets its norms folded and its weights centred.

    Raises:
        ModelSourceError: the architecture is not supported, the files are broken, or memory does not suffice.
    """
    target = pick_device(device)
    kind = pick_dtype(dtype, target)
    transformers_logging.disable_progress_bar()
    if backend == "hooked_transformer" or is_hooked_folder(files.path):
        from steerserve.model.hooked_lens import load_hooked_lens  # noqa: PLC0415 it builds on this module

        return load_hooked_lens(files, target, kind, process_weights=process_weights)
    return _load_bridge(files, target, kind)


def _load_bridge(files: ModelFiles, target: torch.device, kind: torch.dtype) -> BridgeLens:
    config = load_config(files)
    check_kind(files, config)
    check_layers(config)
    check_memory(files.path, config, target, kind)
    hf_model = load_weights(files, kind)
    attention = hf_model.config._attn_implementation  # noqa: SLF001 transformers has no public reader
    hf_model = hf_model.eval().requires_grad_(requires_grad=False).to(target)
    if can_pack(target, kind):
        pack_linears(hf_model)
        wrap_activations(hf_model)
    bridge, points = _build_bridge(files, hf_model)
    # Some adapters switch to eager attention for hook points inside it, which ours do not have.
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


def official_name(name: str) -> str:
    """Return a hub's name of a model for the one that TransformerLens uses, such as gpt2 for gpt2-small."""
    wanted = name.lower()
    return next((official for official, aliases in MODEL_ALIASES.items() if wanted in map(str.lower, aliases)), name)


def _build_bridge(files: ModelFiles, hf_model: Any) -> tuple[TransformerBridge, dict[str, Point]]:  # noqa: ANN401
    """Build the bridge with opaque blocks, and find what the adapter's own blocks would have hooked."""
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
    return bridge, find_points(bridge.hook_dict, bridge.blocks, inner_sources(replaced[0]), d_model)
