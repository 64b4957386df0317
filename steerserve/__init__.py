"""Serve one language model whose requests carry edits of sparse-autoencoder features, or use it from Python."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from steerserve.api.model import SteeredModel
    from steerserve.presets.preset import Preset
    from steerserve.wire.edits import Edit
    from steerserve.wire.receipt import Receipt

__version__ = "0.1.0"

__all__ = ["Edit", "Preset", "Receipt", "SteeredModel", "__version__"]

_MODULES = {
    "SteeredModel": "steerserve.api.model",
    "Edit": "steerserve.wire.edits",
    "Preset": "steerserve.presets.preset",
    "Receipt": "steerserve.wire.receipt",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used, so that `import steerserve` loads nothing heavy."""
    if name not in _MODULES:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    import importlib  # noqa: PLC0415 only when a name is used

    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
