"""The served model: a TransformerLens bridge whose blocks run transformers' own code.

The only module that imports TransformerLens. Its hook points are the residual stream before and after each block.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformer_lens.model_bridge.generalized_components import OpaqueBlockBridge
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from steerserve.core.errors import ModelSourceError
from steerserve.model.fitness import check_complete, check_kind, check_layers, check_memory, free_bytes
from steerserve.model.packed import can_pack, pack_linears, wrap_activations
from steerserve.model.tokenizer import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from jaxtyping import Float, Int
    from transformer_lens.hook_points import HookPoint
    from transformer_lens.model_bridge import TransformerBridge

    from steerserve.model.source import ModelFiles

    HookFn = Callable[[Tensor], Tensor | None]


class _ReachedHookError(Exception):
    """Ends a forward pass at the hook point whose value was wanted."""

    def __init__(self, resid: Tensor) -> None:
        super().__init__()
        self.resid = resid


class LensModel:
    """A causal language model with named hook points on its residual stream. One thread uses it at a time."""

    def __init__(self, model_id: str, hf_model: nn.Module, bridge: TransformerBridge, tokenizer: Tokenizer) -> None:
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
        self.hook_names: tuple[str, ...] = tuple(
            f"blocks.{layer}.hook_resid_{side}" for layer in range(self.num_layers) for side in ("pre", "post")
        )
        """In the order in which a forward pass reaches them."""

    @property
    def cache_bytes_per_token(self) -> int:
        """Size of one token's keys and values in all layers."""
        whole: Any = self.hf_model.config
        config = whole.get_text_config()
        num_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        d_head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return int(2 * self.num_layers * num_heads * d_head * self.dtype.itemsize)

    def free_bytes(self) -> int:
        """Return the free memory of the model's device."""
        return free_bytes(self.device)

    def hook_point(self, hook_name: str) -> HookPoint:
        """Return the hook point of that name.

        Raises:
            KeyError: the model has no such hook point.
        """
        if hook_name not in self.hook_names:
            raise KeyError(hook_name)
        block, _, side = hook_name.rpartition(".")
        canonical = f"{block}.{'hook_in' if side == 'hook_resid_pre' else 'hook_out'}"
        return self.bridge.hook_dict[canonical]

    @contextlib.contextmanager
    def hooked(self, hook_name: str, fn: HookFn) -> Iterator[None]:
        """Call `fn(resid [rows, pos, d_model])` at a hook point while the context is open.

        What `fn` returns replaces the residual stream; None leaves it.
        """
        detach = self.attach(hook_name, fn)
        try:
            yield
        finally:
            detach()

    def attach(self, hook_name: str, fn: HookFn) -> Callable[[], None]:
        """Call `fn` at a hook point from now on; return what ends that."""
        point = self.hook_point(hook_name)

        def hook(resid: Tensor, hook: object) -> Tensor | None:  # noqa: ARG001 TransformerLens passes it by name
            return fn(resid)

        point.add_hook(hook, is_permanent=True)
        added = point.fwd_hooks[-1]

        def detach() -> None:
            added.hook.remove()
            point.fwd_hooks.remove(added)

        return detach

    def forward(self, ids: Int[Tensor, "rows pos"], **kwargs: Any) -> Float[Tensor, "rows kept vocab"]:  # noqa: ANN401 transformers' own
        """Return the logits; keyword arguments are those of the transformers model."""
        logits: Tensor = self.hf_model(input_ids=ids, **kwargs).logits
        return logits

    @torch.inference_mode()
    def run_to(self, ids: Int[Tensor, "rows pos"], hook_name: str) -> Float[Tensor, "rows pos d_model"]:
        """Run the model up to a hook point, over whole rows without padding or cache, and return its value."""

        def stop(resid: Tensor) -> Tensor | None:
            raise _ReachedHookError(resid)

        with self.hooked(hook_name, stop):
            try:
                self.hf_model(input_ids=ids.to(self.device), use_cache=False)
            except _ReachedHookError as reached:
                return reached.resid
        message = f"the forward pass never reached {hook_name}"
        raise RuntimeError(message)


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
    bridge = _build_bridge(files, hf_model)
    # Some adapters switch to eager attention for hook points inside the blocks, which ours do not have.
    hf_model.set_attn_implementation(attention)
    tokenizer = Tokenizer.load(
        files.path,
        _eos_ids(hf_model),
        max_vocab=hf_model.config.get_text_config().vocab_size,
        trust_remote_code=files.trust_remote_code,
    )
    bridge.tokenizer = tokenizer.hf
    return LensModel(files.id, hf_model, bridge, tokenizer)


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


def _build_bridge(files: ModelFiles, hf_model: Any) -> TransformerBridge:  # noqa: ANN401
    def opaque(adapter: Any) -> None:  # noqa: ANN401
        blocks = adapter.component_mapping["blocks"]
        adapter.component_mapping["blocks"] = OpaqueBlockBridge(name=blocks.name)

    architecture = type(hf_model).__name__
    try:
        return build_bridge_from_module(
            hf_model, architecture, hf_config=hf_model.config, model_name=files.id, post_adapter_hook=opaque
        )
    except (ValueError, KeyError, AttributeError, NotImplementedError) as error:
        message = (
            f"TransformerLens does not support the architecture {architecture} of {files.id}: {_first_line(error)}"
        )
        raise ModelSourceError(message) from error


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
