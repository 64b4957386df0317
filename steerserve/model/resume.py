"""Runs a model from a hook point on, without computing the blocks before it.

The model's own forward runs as always (embedding, masks, position embeddings), but the blocks before the hook point
return their input. This is exact if blocks pass on the stream and nothing else, which is tested on the model itself for
each hook point.
"""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from steerserve.model.names import RESID_POST, RESID_PRE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from steerserve.model.bridge_lens import BridgeLens

    Forward = Callable[..., Any]

_NUM_TOKENS = 6
_SEED = 5
_ROUNDING = 64
"""Largest difference of logits computed from the same values, in units in the last place."""


def find_skips(lens: BridgeLens, hook_name: str) -> Mapping[nn.Module, Forward]:
    """Return the functions to call instead of the blocks before a hook point; empty if all blocks must run.

    The value at the hook point must be replaced. For a hook point inside a block no block is skipped, as the value
    does not determine the stream of that block.
    """
    _, layer, kind = hook_name.split(".", 2)
    num_before = {RESID_PRE: int(layer), RESID_POST: int(layer) + 1}.get(kind, 0)
    blocks = [block.original_component for block in list(lens.bridge.blocks)[:num_before]]
    if not blocks:
        return {}
    generator = torch.Generator().manual_seed(_SEED)
    value = torch.randn(1, _NUM_TOKENS, lens.width(hook_name), generator=generator).to(lens.device, lens.dtype)
    ids = torch.arange(_NUM_TOKENS, device=lens.device)[None]
    with torch.inference_mode(), lens.hooked(hook_name, lambda _: value.clone()):
        # With other tokens, so that the next pass cannot use anything that blocks have kept from this one.
        skips = _stand_ins(blocks, lambda: lens.forward(ids.flip(1), use_cache=False))
        try:
            with skipping(skips):
                part = lens.forward(ids, use_cache=False).float()
        except (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError):
            return {}  # a later part needs something that a skipped block would have computed
        whole = lens.forward(ids, use_cache=False).float()
    allowed = _ROUNDING * torch.finfo(lens.dtype).eps * whole.abs().max()
    return skips if bool((whole - part).abs().max() <= allowed) else {}


@contextlib.contextmanager
def skipping(skips: Mapping[nn.Module, Forward]) -> Iterator[None]:
    """Call these functions instead of the blocks' own forwards while the context is open."""
    # Some blocks have a forward besides their class's: transformers and its users wrap them.
    own = {block: block.__dict__["forward"] for block in skips if "forward" in block.__dict__}
    for block, skip in skips.items():
        block.forward = skip
    try:
        yield
    finally:
        for block in skips:
            del block.forward
            if block in own:
                block.forward = own[block]


def _stand_ins(blocks: list[nn.Module], forward: Callable[[], object]) -> dict[nn.Module, Forward]:
    """Return, for each block, a function that returns the stream in the form of the block's output."""
    skips: dict[nn.Module, Forward] = {}

    def note(block: nn.Module, _: object, out: object) -> None:
        skips[block] = functools.partial(_pass_on, len(out) - 1 if isinstance(out, tuple) else None)

    with contextlib.ExitStack() as stack:
        for block in blocks:
            stack.callback(block.register_forward_hook(note).remove)
        forward()
    return skips


def _pass_on(num_others: int | None, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor | None, ...]:  # noqa: ANN401 the arguments of transformers' blocks
    stream: Tensor = args[0] if args else kwargs["hidden_states"]
    return stream if num_others is None else (stream, *[None] * num_others)
