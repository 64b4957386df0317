"""Hook points, and where they are in a model whose blocks run transformers' own code.

The stream before and after a block is TransformerLens' own hook point. Those inside a block are torch hooks on the
very modules of transformers that TransformerLens' adapter names, set only while somebody listens: a block without
listeners runs as if there were none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from torch import Tensor, nn

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
    from collections.abc import Callable, Iterable

    from jaxtyping import Float

    HookFn = Callable[[Tensor], Tensor | None]
    Detach = Callable[[], None]
    Normalize = Callable[[Float[Tensor, "*rows width"]], Float[Tensor, "*rows width"]]

_SIDES = ("hook_in", "hook_out")
_EPS_NAMES = ("eps", "variance_epsilon")


class Point(Protocol):
    """A place in the forward pass whose value can be read and replaced."""

    @property
    def width(self) -> int:
        """Size of its vectors."""

    @property
    def is_read_only(self) -> bool:
        """Whether its value can be read, and not be replaced."""

    def attach(self, fn: HookFn) -> Detach:
        """Call `fn(value [rows, pos, width])` from now on; return what ends that.

        What `fn` returns replaces the value; None leaves it.
        """


@dataclass(frozen=True, slots=True)
class StreamPoint:
    """The residual stream before or after a block."""

    hook: Any
    """TransformerLens' HookPoint."""
    width: int
    is_read_only: bool = False

    def attach(self, fn: HookFn) -> Detach:
        """Call `fn` from now on; return what ends that."""

        def call(resid: Tensor, hook: object) -> Tensor | None:  # noqa: ARG001 TransformerLens passes it by name
            return fn(resid)

        self.hook.add_hook(call, is_permanent=True)
        added = self.hook.fwd_hooks[-1]

        def detach() -> None:
            added.hook.remove()
            self.hook.fwd_hooks.remove(added)

        return detach


@dataclass(frozen=True, slots=True)
class HeadsPoint:
    """What the heads of an attention give, which TransformerLens keeps apart: `[rows, pos, heads, d_head]`."""

    hook: Any
    """TransformerLens' HookPoint."""
    width: int
    """Of all heads together."""
    is_read_only: bool = False

    def attach(self, fn: HookFn) -> Detach:
        """Call `fn` with the heads one after the other from now on; return what ends that."""

        def call(z: Tensor) -> Tensor | None:
            edited = fn(z.flatten(-2))
            return None if edited is None else edited.view(z.shape)

        return StreamPoint(self.hook, self.width).attach(call)


@dataclass(frozen=True, slots=True)
class ModulePoint:
    """What a module inside a block takes or gives."""

    block: nn.Module
    module: nn.Module
    is_input: bool
    width: int
    is_stream: bool = False
    """Whether the value is the residual stream itself, which the block keeps for its sum under another name."""
    scale: float = 1.0
    """What the block multiplies the module's output with before it is added to the stream."""
    is_read_only: bool = False

    def attach(self, fn: HookFn) -> Detach:
        """Call `fn` from now on; return what ends that."""
        shape: list[int] = []

        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            shape[:] = (args[0] if args else kwargs["hidden_states"]).shape[:-1]

        def edit(value: Tensor) -> Tensor:
            seen = value.view(*shape, value.shape[-1])  # OPT flattens rows and positions before its MLP
            edited = fn(seen if self.scale == 1 else seen * self.scale)
            if edited is None:
                return value
            edited = (edited if self.scale == 1 else edited / self.scale).reshape(value.shape)
            # A new tensor would change what the MLP reads and leave the stream that its output is added to.
            return value.copy_(edited) if self.is_stream else edited

        def before(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (edit(args[0]), *args[1:])

        def after(_: nn.Module, __: tuple[Any, ...], out: Any) -> Any:  # noqa: ANN401 a tensor, or a tuple that begins with one
            return (edit(out[0]), *out[1:]) if isinstance(out, tuple) else edit(out)

        register = self.module.register_forward_pre_hook if self.is_input else self.module.register_forward_hook
        handles = (
            self.block.register_forward_pre_hook(note, with_kwargs=True),
            register(before if self.is_input else after),  # type: ignore[arg-type]
        )

        def detach() -> None:
            for handle in handles:
                handle.remove()

        return detach


@dataclass(frozen=True, slots=True)
class ReadPoint:
    """What a module inside a block takes, or that divided by its length as the module itself divides it."""

    block: nn.Module
    module: nn.Module
    width: int
    normalize: Normalize | None = None
    is_edited: bool = False
    """Whether edits of the stream are made at the same module's input; they come before what is read here."""
    is_read_only: bool = True

    def attach(self, fn: HookFn) -> Detach:
        """Call `fn(value [rows, pos, width])` from now on; return what ends that.

        What `fn` returns must be None or the value itself; anything else is a RuntimeError in the forward pass.
        """
        shape: list[int] = []

        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            shape[:] = (args[0] if args else kwargs["hidden_states"]).shape[:-1]

        def read(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *_out: object) -> None:
            value = args[0] if args else kwargs["hidden_states"]
            value = value.view(*shape, value.shape[-1])  # OPT flattens rows and positions before its MLP
            if self.normalize is not None:
                value = self.normalize(value)
            if (returned := fn(value)) is not None and returned is not value:
                message = "the values at this hook point can be read, and not be replaced"
                raise RuntimeError(message)

        # After the module has run, its input is as all edits of it left it, whoever registered first.
        register: Any = self.module.register_forward_hook if self.is_edited else self.module.register_forward_pre_hook
        handles = (self.block.register_forward_pre_hook(note, with_kwargs=True), register(read, with_kwargs=True))

        def detach() -> None:
            for handle in handles:
                handle.remove()

        return detach


class Source(NamedTuple):
    """Where in a block a value is."""

    path: str
    is_input: bool
    scale: float = 1.0


def inner_sources(blocks: Any) -> dict[str, Source]:  # noqa: ANN401
    """Return where TransformerLens finds the values inside a block, by kind of hook point.

    Args:
        blocks: The block component of TransformerLens' adapter.
    """
    targets = dict(blocks.hook_aliases)
    attention = (blocks.submodules or {}).get("attn")
    targets[HOOK_Z] = f"attn.{getattr(attention, 'hook_aliases', {}).get('hook_z', '')}"
    scale: float | None = getattr(blocks, "residual_contribution_scale", None)
    if scale is not None:  # Granite's, whose component hooks these two itself
        targets[ATTN_OUT] = f"{blocks.scaled_attn_submodule}.hook_out"
        targets[MLP_OUT] = f"{blocks.scaled_mlp_submodule}.hook_out"
    # TransformerLens hooks the first of these itself; in parallel blocks it is what a norm of the MLP's own takes.
    targets[STREAM_INTO_MLP] = targets.get(RESID_MID) or "ln2.hook_in"
    targets[LN2_NORMALIZED] = "ln2.hook_in"
    targets[MLP_IN] = ["mlp.hook_in", "mlp.in.hook_in"]  # OPT's MLP is no module, only two layers
    found: dict[str, Source] = {}
    for kind in (HOOK_Z, ATTN_OUT, RESID_MID, *READ_KINDS, MLP_OUT):
        target = targets.get(kind, "")
        for wanted in [target] if isinstance(target, str) else target:
            path = _module_path(blocks, wanted)
            if path is not None and kind not in found:
                factor = 1.0 if scale is None or kind not in {ATTN_OUT, MLP_OUT} else scale
                found[kind] = Source(path, wanted.endswith("hook_in"), factor)
    return found


def find_points(hook_dict: Any, blocks: Iterable[Any], sources: dict[str, Source], d_model: int) -> dict[str, Point]:  # noqa: ANN401
    """Return all hook points by name, in the order in which a forward pass reaches them.

    Args:
        hook_dict: The hook points of a TransformerLens bridge whose blocks are opaque.
        blocks: The blocks of that bridge.
        sources: Where values inside a block are.
        d_model: Width of the residual stream.
    """
    points: dict[str, Point] = {}
    for layer, block in enumerate(blocks):
        inner = {
            kind: _read_point(block.original_component, kind, sources, d_model)
            if kind in READ_KINDS
            else _module_point(block.original_component, kind, source, d_model)
            for kind, source in sources.items()
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
    """Return the module below a block that `attn.o.hook_in` means, None where the block has no such component."""
    *parts, side = target.split(".")
    component, names = blocks, []
    for part in parts:
        component = (component.submodules or {}).get(part)
        if component is None:
            return None
        names.append(component.name)
    if side not in _SIDES or not names or names[-1] is None:
        return None
    return ".".join(name for name in names if name is not None)  # what has no name is only a group of its parts


def _module_point(block: nn.Module, kind: str, source: Source, d_model: int) -> ModulePoint | None:
    """Return the hook point in one block, None where that block is of another kind and has no such module."""
    try:
        module = block.get_submodule(source.path)
    except AttributeError:
        return None
    width = d_model
    if kind == HOOK_Z:
        width = getattr(module, "in_features", 0) or getattr(module, "nx", 0)  # nx is Conv1D's
    return ModulePoint(block, module, source.is_input, width, is_stream=kind == RESID_MID, scale=source.scale)


def _read_point(block: nn.Module, kind: str, sources: dict[str, Source], d_model: int) -> ReadPoint | None:
    """Return the point on the MLP's way in, None where that block has no such module or norm."""
    path = sources[kind].path
    try:
        module = block.get_submodule(path)
    except AttributeError:
        return None
    normalize = _norm_of(module) if kind == LN2_NORMALIZED else None
    if kind == LN2_NORMALIZED and normalize is None:
        return None
    is_edited = RESID_MID in sources and sources[RESID_MID].path == path
    return ReadPoint(block, module, d_model, normalize=normalize, is_edited=is_edited)


def _norm_of(module: nn.Module) -> Normalize | None:
    """Return what a norm does to its input before its weights, in float32; None for what is neither of the two kinds.

    That is TransformerLens' `hook_normalized`. It lies before the weights, so that it is the same whether or not a
    model was processed (`fold_ln`, `center_writing_weights`), and a transcoder of either kind reads what it learned.
    Source: transformer_lens.components.layer_norm and rms_norm; tests compare with its bridge.
    """
    found = next((getattr(module, name) for name in _EPS_NAMES if hasattr(module, name)), None)
    is_rms = "RMSNorm" in type(module).__name__
    if not isinstance(found, float) or not (is_rms or isinstance(module, nn.LayerNorm)):
        return None
    eps: float = found

    def normalize(x: Tensor) -> Tensor:
        x = x.float()
        if not is_rms:
            x = x - x.mean(-1, keepdim=True)
        return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()

    return normalize
