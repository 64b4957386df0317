"""The served model: a TransformerLens bridge whose blocks run transformers' own code, and its hook points by name.

The only module that imports TransformerLens.
"""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformer_lens.model_bridge.generalized_components import OpaqueBlockBridge
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
from transformer_lens.supported_models import MODEL_ALIASES
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from steerserve.core.errors import ModelSourceError
from steerserve.model.fitness import check_complete, check_kind, check_layers, check_memory, free_bytes
from steerserve.model.hook_check import working_points
from steerserve.model.hook_names import describe_hook_names
from steerserve.model.hook_points import find_points, inner_sources
from steerserve.model.packed import PackedLinear, can_pack, pack_linears, wrap_activations
from steerserve.model.resume import find_skips, skipping
from steerserve.model.tokenizer import Tokenizer
from steerserve.model.unembedding import find_unembedding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from jaxtyping import Float, Int
    from transformer_lens.model_bridge import TransformerBridge

    from steerserve.model.hook_points import HookFn, Point
    from steerserve.model.source import ModelFiles
    from steerserve.model.unembedding import Unembedding


class _AllReadError(Exception):
    """Ends a forward pass once all values that were wanted are read."""


class LensModel:
    """A causal language model with named hook points. One thread uses it at a time."""

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
        self.hook_names: tuple[str, ...] = tuple(points)
        """In the order in which a forward pass reaches them."""

    @property
    def cache_bytes_per_token(self) -> int:
        """Size of one token's keys and values in all layers."""
        whole: Any = self.hf_model.config
        config = whole.get_text_config()
        num_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        d_head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return int(2 * self.num_layers * num_heads * d_head * self.dtype.itemsize)

    @property
    def weight_bytes(self) -> int:
        """Size of its weights in memory."""
        packed = (one for one in self.hf_model.modules() if isinstance(one, PackedLinear))
        num_packed = sum(one.in_features * one.out_features for one in packed)
        return int(num_packed + sum(one.numel() for one in self.hf_model.parameters())) * self.dtype.itemsize

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
        Other hook points before this one see nothing of worth.

        Args:
            hook_name: Where to begin.
            value: What is there; kept as it is.
            ids: The tokens, for what the model takes from them beside the stream.
            kwargs: Those of the transformers model, such as `logits_to_keep`.

        Raises:
            KeyError: the model has no such hook point.
        """
        if hook_name not in self._skips:
            self._skips[hook_name] = find_skips(self, hook_name)
        # Some blocks add to the stream in place, so they get a copy.
        with self.hooked(hook_name, lambda _: value.to(self.dtype, copy=True)), skipping(self._skips[hook_name]):
            return self.forward(ids, use_cache=False, **kwargs)

    @functools.cached_property
    def unembedding(self) -> Unembedding:
        """From the residual stream behind the last block to the logits, without what is not linear in it."""
        norm = getattr(self.bridge, "ln_final", None)
        like = torch.zeros(self.d_model, dtype=self.dtype, device=self.device)
        return find_unembedding(getattr(norm, "original_component", None), self.bridge.unembed.original_component, like)

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


def load_lens(files: ModelFiles, *, device: str = "auto", dtype: torch.dtype | str = "auto") -> LensModel:
    """Build the model from its files.

    `auto` takes CUDA with bfloat16 where there is a device, else the CPU with float32.

    Raises:
        ModelSourceError: the architecture is not supported, the files are broken, or memory does not suffice.
    """
    target = _device(device)
    kind = _dtype(dtype, target)
    transformers_logging.disable_progress_bar()
    config = _load_config(files)
    check_kind(files, config)
    check_layers(config)
    check_memory(files.path, config, target, kind)
    hf_model = _load_weights(files, kind)
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
        _eos_ids(hf_model),
        max_vocab=hf_model.config.get_text_config().vocab_size,
        trust_remote_code=files.trust_remote_code,
    )
    bridge.tokenizer = tokenizer.hf
    points = working_points(points, lambda ids: hf_model(input_ids=ids.to(target), use_cache=False))
    return LensModel(files.id, hf_model, bridge, points, tokenizer)


def official_name(name: str) -> str:
    """Return a hub's name of a model for the one that TransformerLens uses, such as gpt2 for gpt2-small."""
    wanted = name.lower()
    return next((official for official, aliases in MODEL_ALIASES.items() if wanted in map(str.lower, aliases)), name)


def _load_weights(files: ModelFiles, dtype: torch.dtype) -> Any:  # noqa: ANN401
    """Load with fused attention, or with the plain one where the architecture has no other."""
    for attention in ("sdpa", "eager"):
        try:
            hf_model, info = AutoModelForCausalLM.from_pretrained(
                files.path,
                output_loading_info=True,
                dtype=dtype,
                attn_implementation=attention,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=files.trust_remote_code,
            )
        except Exception as error:
            # transformers raises what its parts raise: OSError, KeyError, SafetensorError, RuntimeError on shapes.
            if attention == "sdpa" and "scaled_dot_product_attention" in str(error):
                continue
            message = f"The model in {files.path} cannot be loaded: {_first_line(error)}"
            raise ModelSourceError(message) from error
        check_complete(files, info)
        return hf_model
    message = f"The model in {files.path} cannot be loaded with any attention."
    raise ModelSourceError(message)


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
        message = (
            f"TransformerLens does not support the architecture {architecture} of {files.id}: {_first_line(error)}"
        )
        raise ModelSourceError(message) from error
    d_model = hf_model.config.get_text_config().hidden_size
    return bridge, find_points(bridge.hook_dict, bridge.blocks, inner_sources(replaced[0]), d_model)


def _load_config(files: ModelFiles) -> Any:  # noqa: ANN401 transformers' configs share no typed base
    try:
        return AutoConfig.from_pretrained(files.path, local_files_only=True, trust_remote_code=files.trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError) as error:
        message = (
            f"transformers does not support the model in {files.path}: {_first_line(error)} "
            "(models that bring their own code need model.trust_remote_code: true in the configuration)"
        )
        raise ModelSourceError(message) from error


def _eos_ids(hf_model: Any) -> frozenset[int]:  # noqa: ANN401
    ids: set[int] = set()
    for config in (hf_model.config, hf_model.generation_config):
        eos = getattr(config, "eos_token_id", None)
        ids |= {eos} if isinstance(eos, int) else set(eos or ())
    return frozenset(ids)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        message = f"model.device is {name}, but this PyTorch sees {torch.cuda.device_count()} CUDA devices. Use auto."
        raise ModelSourceError(message)
    return device


def _dtype(dtype: torch.dtype | str, device: torch.device) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    found: torch.dtype = getattr(torch, dtype)
    return found


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
