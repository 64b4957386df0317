"""The served model with its hook points by name: the interface of the backends, and the choice of one.

`bridge_lens`, the default, runs transformers' own blocks; `hooked_lens` runs a HookedTransformer.
"""

from __future__ import annotations

import contextlib
import functools
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformer_lens.supported_models import MODEL_ALIASES
from transformers.utils import logging as transformers_logging

from steerserve.model.fitness import free_bytes
from steerserve.model.names import describe_hook_names
from steerserve.model.packed import num_weights
from steerserve.model.source import is_hooked_folder
from steerserve.model.tokenizer import Tokenizer
from steerserve.model.unembedding import find_unembedding
from steerserve.model.weights import pick_device, pick_dtype

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from jaxtyping import Float, Int
    from transformers import Cache

    from steerserve.core.config import Backend
    from steerserve.model.hook_points import HookFn, HookPoint
    from steerserve.model.source import ModelFiles
    from steerserve.model.unembedding import Unembedding


class _AllReadError(Exception):
    """Ends a forward pass after the last requested value is read."""


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
    """The types of attention in transformers' terms, each once; empty if all layers have full attention."""
    sliding_window: int | None
    """Number of tokens that sliding attention sees; None without such layers."""
    takes_additive_mask: bool
    """Whether attention takes a mask of numbers to add, and not of booleans."""
    is_processed: bool = False
    """Whether TransformerLens has folded norms into the weights after them, and centred weights."""
    readable: tuple[str, ...]
    """Hook points whose values can be read, in the order of a forward pass."""
    hook_names: tuple[str, ...]
    """Hook points whose values can also be edited, in the same order."""
    _points: Mapping[str, HookPoint]

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
        """Return the logits; the keyword arguments are those of a transformers model."""

    @abstractmethod
    def run_from(
        self,
        hook_name: str,
        value: Float[Tensor, "rows pos width"],
        ids: Int[Tensor, "rows pos"],
        **kwargs: Any,  # noqa: ANN401 transformers' own
    ) -> Float[Tensor, "rows kept vocab"]:
        """Return the logits of whole rows, without padding or cache, with `value` at a hook point.

        Blocks before the hook point are skipped if that is possible. Hook points before it have no meaningful values.

        Args:
            hook_name: The hook point to start from.
            value: The value at the hook point; it is not changed.
            ids: The tokens, for models that use them for more than the stream.
            kwargs: Arguments of a transformers model, such as `logits_to_keep`.

        Raises:
            KeyError: the model has no such hook point.
        """

    @abstractmethod
    def new_cache(self) -> Cache:
        """Return an empty cache that grows, for `read`."""

    @functools.cached_property
    def unembedding(self) -> Unembedding:
        """The linear part of the way from the residual stream after the last block to the logits."""
        norm, head = self._final()
        return find_unembedding(norm, head, torch.zeros(self.d_model, dtype=self.dtype, device=self.device))

    @abstractmethod
    def _final(self) -> tuple[nn.Module | None, nn.Module]:
        """Return the final norm (None if the model has none) and the unembedding."""

    @property
    def weight_bytes(self) -> int:
        """Size of the weights in memory."""
        return num_weights(self.weights) * self.dtype.itemsize

    def free_bytes(self) -> int:
        """Return the free memory of the model's device."""
        return free_bytes(self.device)

    @property
    def offered_hooks(self) -> str:
        """A short description of the editable hook points, for messages."""
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

        The result of `fn` replaces the value; None leaves it.
        """
        detach = self.attach(hook_name, fn)
        try:
            yield
        finally:
            detach()

    def attach(self, hook_name: str, fn: HookFn) -> Callable[[], None]:
        """Call `fn` at a hook point from now on; return a function that ends this.

        Raises:
            KeyError: the model has no such hook point.
        """
        return self._points[hook_name].attach(fn)

    @torch.inference_mode()
    def unembed(self, directions: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows vocab"]:
        """Return the logits that directions in the residual stream add, up to the final norm's scale."""
        return self.unembedding.logits(directions.to(self.device, self.dtype)).float()

    @torch.inference_mode()
    def read(
        self,
        ids: Int[Tensor, "rows pos"],
        hook_names: Iterable[str],
        cache: Any = None,  # noqa: ANN401 any cache of transformers
    ) -> dict[str, Float[Tensor, "rows pos width"]]:
        """Return the values at the hook points, for rows without padding.

        The model runs only as far as the last of them. With a `cache` the rows continue it, and it grows.

        Raises:
            KeyError: the model has no such hook point.
        """
        names = frozenset(hook_names)
        values: dict[str, Tensor] = {}

        def keep(value: Tensor, hook_name: str) -> None:
            values[hook_name] = value.clone()  # some blocks add to it in place
            if len(values) == len(names):
                raise _AllReadError

        with contextlib.ExitStack() as stack, contextlib.suppress(_AllReadError):
            for hook_name in names:
                stack.enter_context(self.hooked(hook_name, functools.partial(keep, hook_name=hook_name)))
            past = {} if cache is None else {"past_key_values": cache}
            self.forward(ids.to(self.device), use_cache=cache is not None, **past)
        return values


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
        files: The files. Those in HookedTransformer's own format are loaded as one whatever `backend` is.
        device: The device; `auto` is CUDA if a CUDA device is available, else the CPU.
        dtype: The number format; `auto` is bfloat16 on CUDA and float32 on a CPU.
        backend: The backend that runs the model.
        process_weights: Whether to fold the norms and centre the weights of a HookedTransformer.

    Raises:
        ModelSourceError: the architecture is not supported, the files are damaged, or the memory is too small.
    """
    target = pick_device(device)
    kind = pick_dtype(dtype, target)
    transformers_logging.disable_progress_bar()
    # Imported here, as both import this module.
    if backend == "hooked_transformer" or is_hooked_folder(files.path):
        from steerserve.model.hooked_lens import load_hooked_lens  # noqa: PLC0415

        return load_hooked_lens(files, target, kind, process_weights=process_weights)
    from steerserve.model.bridge_lens import load_bridge_lens  # noqa: PLC0415

    return load_bridge_lens(files, target, kind)


def official_name(name: str) -> str:
    """Return the hub's name of a model that TransformerLens calls `name`, such as gpt2 for gpt2-small."""
    alias = name.lower()
    return next((official for official, aliases in MODEL_ALIASES.items() if alias in map(str.lower, aliases)), name)
