"""Running a model from a hook point on: the blocks before it are skipped, not computed.

The model's own forward runs as always (embedding, masks, position embeddings), with blocks that give back the stream
they are given in place of those before the hook point. That is exact where blocks hand on the stream and nothing else,
which is tried for each hook point on the model itself.
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
"""Units in the last place by which logits computed from the same values may differ."""


def find_skips(lens: BridgeLens, hook_name: str) -> Mapping[nn.Module, Forward]:
    """Return what to call instead of each block before a hook point; nothing where all blocks must run.

    The value at the hook point must be replaced. Inside a block there is nothing to skip, as that block's stream is
    not known from the value.
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
        # Of other tokens, so that what blocks may keep on themselves is not what the next pass wants.
        skips = _stand_ins(blocks, lambda: lens.forward(ids.flip(1), use_cache=False))
        try:
            with skipping(skips):
                part = lens.forward(ids, use_cache=False).float()
        except (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError):
            return {}  # something later wants what a skipped block would have left behind
        whole = lens.forward(ids, use_cache=False).float()
    allowed = _ROUNDING * torch.finfo(lens.dtype).eps * whole.abs().max()
    return skips if bool((whole - part).abs().max() <= allowed) else {}


@contextlib.contextmanager
def skipping(skips: Mapping[nn.Module, Forward]) -> Iterator[None]:
    """Call these instead of the blocks' own forwards while the context is open."""
    # Some blocks have a forward of their own beside their class's: transformers and its users wrap them.
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
    """Return, for each block, what gives back the stream in the form in which the block gives its output."""
    skips: dict[nn.Module, Forward] = {}

    def note(block: nn.Module, _: object, out: object) -> None:
        skips[block] = functools.partial(_pass_on, len(out) - 1 if isinstance(out, tuple) else None)

    with contextlib.ExitStack() as stack:
        for block in blocks:
            stack.callback(block.register_forward_hook(note).remove)
        forward()
    return skips


def _pass_on(num_others: int | None, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor | None, ...]:  # noqa: ANN401 what transformers' blocks take
    stream: Tensor = args[0] if args else kwargs["hidden_states"]
    return stream if num_others is None else (stream, *[None] * num_others)
