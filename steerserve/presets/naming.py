"""How requests name presets: behind the model's name, and in `steering`."""

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
    """Return the presets that a model's name carries; None where it is another model's.

    Raises:
        InvalidRequestError: it has an @ with nothing behind it, or a + too many.
    """
    if name == model_id:
        return ()
    if not name.startswith(model_id + _AT):  # a model's own name may have an @ in it
        return None
    presets = tuple(name.removeprefix(model_id + _AT).split(_AND))
    if not all(presets):
        message = (
            f"The model {name[:200]!r} names a preset without a name. Write {model_with(model_id, ['formal'])!r}, or "
            f"{model_with(model_id, ['formal', 'short'])!r} for two of them."
        )
        raise InvalidRequestError(message, param="model")
    return presets
