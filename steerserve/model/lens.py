"""The served model and its hook points by name: what every backend offers, and the choice of one.

`bridge_lens` runs transformers' own blocks, which is the usual way; `hooked_lens` runs a HookedTransformer.
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
    # Both build on this module.
    if backend == "hooked_transformer" or is_hooked_folder(files.path):
        from steerserve.model.hooked_lens import load_hooked_lens  # noqa: PLC0415

        return load_hooked_lens(files, target, kind, process_weights=process_weights)
    from steerserve.model.bridge_lens import load_bridge_lens  # noqa: PLC0415

    return load_bridge_lens(files, target, kind)


def official_name(name: str) -> str:
    """Return a hub's name of a model for the one that TransformerLens uses, such as gpt2 for gpt2-small."""
    wanted = name.lower()
    return next((official for official, aliases in MODEL_ALIASES.items() if wanted in map(str.lower, aliases)), name)
