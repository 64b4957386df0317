"""Hook points of a loaded model, each of which can be listened to, and most of which can be edited.

The stream before and after a block is TransformerLens' own hook point. Hook points inside a block are torch hooks on
modules of transformers, set only while a function is attached: a block without attached functions runs unchanged.
`hook_locations` finds the modules.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float

    HookFn = Callable[[Tensor], Tensor | None]
    Detach = Callable[[], None]
    Normalize = Callable[[Float[Tensor, "*rows width"]], Float[Tensor, "*rows width"]]


class HookPoint(Protocol):
    """A value in the forward pass that can be read, and replaced unless it is read-only."""

    @property
    def width(self) -> int:
        """Size of its vectors."""

    @property
    def is_read_only(self) -> bool:
        """Whether the value can be read but not replaced."""

    def attach(self, fn: HookFn) -> Detach:
        """Call `fn(value [rows, pos, width])` in every forward pass from now on; return a function that ends this.

        The result of `fn` replaces the value; None leaves it.
        """


@dataclass(frozen=True, slots=True)
class StreamPoint:
    """The residual stream before or after a block."""

    hook: Any
    """TransformerLens' HookPoint."""
    width: int
    is_read_only: bool = False

    def attach(self, fn: HookFn) -> Detach:
        """Call `fn` from now on; return a function that ends this."""

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
    """The output of attention heads, which TransformerLens keeps apart: `[rows, pos, heads, d_head]`."""

    hook: Any
    """TransformerLens' HookPoint."""
    width: int
    """Width of all heads together."""
    is_read_only: bool = False

    def attach(self, fn: HookFn) -> Detach:
        """Call `fn` with the heads one after the other from now on; return a function that ends this."""

        def call(z: Tensor) -> Tensor | None:
            edited = fn(z.flatten(-2))
            return None if edited is None else edited.view(z.shape)

        return StreamPoint(self.hook, self.width).attach(call)


@dataclass(frozen=True, slots=True)
class ModulePoint:
    """The input or output of a module inside a block."""

    block: nn.Module
    module: nn.Module
    is_input: bool
    width: int
    is_stream: bool = False
    """Whether the value is the residual stream itself, to which the block adds the module's output later."""
    scale: float = 1.0
    """Factor by which the block multiplies the module's output before adding it to the stream."""
    is_read_only: bool = False

    def attach(self, fn: HookFn) -> Detach:
        """Call `fn` from now on; return a function that ends this."""
        shape = _TokenShape()

        def edit(value: Tensor) -> Tensor:
            unedited = shape.of_rows(value)
            edited = fn(unedited if self.scale == 1 else unedited * self.scale)
            if edited is None:
                return value
            edited = (edited if self.scale == 1 else edited / self.scale).reshape(value.shape)
            # A new tensor would change what the MLP reads, but not the stream that its output is added to.
            return value.copy_(edited) if self.is_stream else edited

        def before(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (edit(args[0]), *args[1:])

        def after(_: nn.Module, __: tuple[Any, ...], out: Any) -> Any:  # noqa: ANN401 a tensor, or a tuple that begins with one
            return (edit(out[0]), *out[1:]) if isinstance(out, tuple) else edit(out)

        register: Any = self.module.register_forward_pre_hook if self.is_input else self.module.register_forward_hook
        handles = (shape.attach(self.block), register(before if self.is_input else after))
        return partial(_remove, handles)


@dataclass(frozen=True, slots=True)
class ReadPoint:
    """The input of a module inside a block, as it is or normalised as the module itself normalises it."""

    block: nn.Module
    module: nn.Module
    width: int
    normalize: Normalize | None = None
    is_edited: bool = False
    """Whether the stream is edited at the same module's input; these edits come before the value is read."""
    is_read_only: bool = True

    def attach(self, fn: HookFn) -> Detach:
        """Call `fn(value [rows, pos, width])` from now on; return a function that ends this.

        `fn` must return None or the value itself; any other result raises a RuntimeError in the forward pass.
        """
        shape = _TokenShape()

        def read(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *_out: object) -> None:
            value = shape.of_rows(_input_of(args, kwargs))
            if self.normalize is not None:
                value = self.normalize(value)
            if (returned := fn(value)) is not None and returned is not value:
                message = "The values at this hook point can be read, but not replaced."
                raise RuntimeError(message)

        # After the module has run, its input contains all edits of it, in whatever order hooks were registered.
        register: Any = self.module.register_forward_hook if self.is_edited else self.module.register_forward_pre_hook
        handles = (shape.attach(self.block), register(read, with_kwargs=True))
        return partial(_remove, handles)


class _TokenShape:
    """The rows and positions of a pass, as a block receives them. OPT flattens the two before its MLP."""

    def __init__(self) -> None:
        self._shape: tuple[int, ...] = ()

    def attach(self, block: nn.Module) -> Any:  # noqa: ANN401 torch's handle
        """Note the shape in every forward pass of the block; return the handle that ends this."""

        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._shape = tuple(_input_of(args, kwargs).shape[:-1])

        return block.register_forward_pre_hook(note, with_kwargs=True)

    def of_rows(self, value: Tensor) -> Float[Tensor, "rows pos width"]:
        """Return a value inside the block with rows and positions apart."""
        return value.view(*self._shape, value.shape[-1])


def _input_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return the input of a transformers module from the arguments of its call."""
    value: Tensor = args[0] if args else kwargs["hidden_states"]
    return value


def _remove(handles: tuple[Any, ...]) -> None:
    for handle in handles:
        handle.remove()
