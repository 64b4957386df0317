"""Finds the hook points of a model whose blocks run transformers' own code.

TransformerLens' adapter of an architecture names the modules inside a block; torch hooks go on these very modules.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn

from steerserve.model.hook_points import ModulePoint, ReadPoint, StreamPoint
from steerserve.model.names import (
    ALL_KINDS,
    ATTN_OUT,
    HOOK_Z,
    LN2_NORMALIZED,
    MLP_IN,
    MLP_OUT,
    READ_KINDS,
    RESID_MID,
    RESID_POST,
    RESID_PRE,
    STREAM_INTO_MLP,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from steerserve.model.hook_points import HookPoint, Normalize

_SIDES = ("hook_in", "hook_out")
_EPS_NAMES = ("eps", "variance_epsilon")


class ModuleLocation(NamedTuple):
    """Where a value is inside a block."""

    path: str
    """Path of the module below the block."""
    is_input: bool
    """Whether the value is the module's input, and not its output."""
    scale: float = 1.0
    """Factor by which the block multiplies the value before adding it to the stream."""


def inner_locations(blocks: Any) -> dict[str, ModuleLocation]:  # noqa: ANN401
    """Return where TransformerLens has the values inside a block, by kind of hook point.

    Args:
        blocks: The block component of TransformerLens' adapter.
    """
    targets = dict(blocks.hook_aliases)
    attention = (blocks.submodules or {}).get("attn")
    targets[HOOK_Z] = f"attn.{getattr(attention, 'hook_aliases', {}).get('hook_z', '')}"
    scale: float | None = getattr(blocks, "residual_contribution_scale", None)
    if scale is not None:  # Granite, whose component hooks these two itself
        targets[ATTN_OUT] = f"{blocks.scaled_attn_submodule}.hook_out"
        targets[MLP_OUT] = f"{blocks.scaled_mlp_submodule}.hook_out"
    # TransformerLens hooks the first of these itself. In parallel blocks it is the input of the MLP's own norm.
    targets[STREAM_INTO_MLP] = targets.get(RESID_MID) or "ln2.hook_in"
    targets[LN2_NORMALIZED] = "ln2.hook_in"
    targets[MLP_IN] = ["mlp.hook_in", "mlp.in.hook_in"]  # OPT has no MLP module, only its two layers
    locations: dict[str, ModuleLocation] = {}
    for kind in (HOOK_Z, ATTN_OUT, RESID_MID, *READ_KINDS, MLP_OUT):
        target = targets.get(kind, "")
        for candidate in [target] if isinstance(target, str) else target:
            path = _module_path(blocks, candidate)
            if path is not None and kind not in locations:
                factor = 1.0 if scale is None or kind not in {ATTN_OUT, MLP_OUT} else scale
                locations[kind] = ModuleLocation(path, candidate.endswith("hook_in"), factor)
    return locations


def find_points(
    hook_dict: Any,  # noqa: ANN401 TransformerLens'
    blocks: Iterable[Any],
    locations: dict[str, ModuleLocation],
    d_model: int,
) -> dict[str, HookPoint]:
    """Return all hook points by name, in the order of a forward pass.

    Args:
        hook_dict: The hook points of a TransformerLens bridge whose blocks are opaque.
        blocks: The blocks of that bridge.
        locations: Where the values inside a block are.
        d_model: Width of the residual stream.
    """
    points: dict[str, HookPoint] = {}
    for layer, block in enumerate(blocks):
        inner = {
            kind: _read_point(block.original_component, kind, locations, d_model)
            if kind in READ_KINDS
            else _module_point(block.original_component, kind, location, d_model)
            for kind, location in locations.items()
        }
        outer = {
            RESID_PRE: StreamPoint(hook_dict[f"blocks.{layer}.hook_in"], d_model),
            RESID_POST: StreamPoint(hook_dict[f"blocks.{layer}.hook_out"], d_model),
        }
        for kind in ALL_KINDS:
            point = outer.get(kind) or inner.get(kind)
            if point is not None:
                points[f"blocks.{layer}.{kind}"] = point
    return points


def _module_path(blocks: Any, target: str) -> str | None:  # noqa: ANN401
    """Return the path of the module that `attn.o.hook_in` means; None if the block has no such component."""
    *parts, side = target.split(".")
    component, names = blocks, []
    for part in parts:
        component = (component.submodules or {}).get(part)
        if component is None:
            return None
        names.append(component.name)
    if side not in _SIDES or not names or names[-1] is None:
        return None
    return ".".join(name for name in names if name is not None)  # a component without a name only groups its parts


def _module_point(block: nn.Module, kind: str, location: ModuleLocation, d_model: int) -> ModulePoint | None:
    """Return the hook point in one block; None if this block has no such module."""
    try:
        module = block.get_submodule(location.path)
    except AttributeError:
        return None
    width = d_model
    if kind == HOOK_Z:
        width = getattr(module, "in_features", 0) or getattr(module, "nx", 0)  # nx is Conv1D's
    return ModulePoint(block, module, location.is_input, width, is_stream=kind == RESID_MID, scale=location.scale)


def _read_point(block: nn.Module, kind: str, locations: dict[str, ModuleLocation], d_model: int) -> ReadPoint | None:
    """Return the hook point before the MLP; None if this block has no such module or norm."""
    path = locations[kind].path
    try:
        module = block.get_submodule(path)
    except AttributeError:
        return None
    normalize = _norm_of(module) if kind == LN2_NORMALIZED else None
    if kind == LN2_NORMALIZED and normalize is None:
        return None
    is_edited = RESID_MID in locations and locations[RESID_MID].path == path
    return ReadPoint(block, module, d_model, normalize=normalize, is_edited=is_edited)


def _norm_of(module: nn.Module) -> Normalize | None:
    """Return a norm without its weights, in float32; None if the module is neither an RMSNorm nor a LayerNorm.

    Its result is TransformerLens' `hook_normalized`, which does not depend on whether a model was processed (`fold_ln`,
    `center_writing_weights`). A transcoder trained on either kind of model therefore reads the values it has learned.
    Source: transformer_lens.components.layer_norm and rms_norm; tests compare with its bridge.
    """
    eps = next((getattr(module, name) for name in _EPS_NAMES if hasattr(module, name)), None)
    is_rms = "RMSNorm" in type(module).__name__
    if not isinstance(eps, float) or not (is_rms or isinstance(module, nn.LayerNorm)):
        return None

    def normalize(x: Tensor) -> Tensor:
        x = x.float()
        if not is_rms:
            x = x - x.mean(-1, keepdim=True)
        return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()

    return normalize
