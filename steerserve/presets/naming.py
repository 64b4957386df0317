"""How requests name presets: after the model's name, and in `steering`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steerserve.core.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

_AT, _AND = "@", "+"


def model_with(model_id: str, names: Sequence[str]) -> str:
    """Return the model's name with presets: `model@a+b`."""
    return model_id + _AT + _AND.join(names)


def split_model(name: str, model_id: str) -> tuple[str, ...] | None:
    """Return the presets in a model's name; None if it is another model's name.

    Raises:
        InvalidRequestError: nothing follows the `@` or a `+`.
    """
    if name == model_id:
        return ()
    if not name.startswith(model_id + _AT):  # a model's own name may have an @ in it
        return None
    presets = tuple(name.removeprefix(model_id + _AT).split(_AND))
    if not all(presets):
        message = (
            f"The model {name[:200]!r} has an empty preset name. Write {model_with(model_id, ['formal'])!r}, or "
            f"{model_with(model_id, ['formal', 'short'])!r} for two presets."
        )
        raise InvalidRequestError(message, param="model")
    return presets
