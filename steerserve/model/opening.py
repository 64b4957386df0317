"""The model that a run's options name: fetched and built."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steerserve.model.lens import load_lens
from steerserve.model.source import fetch_model

if TYPE_CHECKING:
    from steerserve.model.lens import LensModel
    from steerserve.model.source import ModelFiles
    from steerserve.model.wanted import WantedModel


def open_model(wanted: WantedModel) -> tuple[ModelFiles, LensModel]:
    """Return the model's files and the model.

    Raises:
        ModelSourceError: it cannot be had or loaded.
    """
    files = fetch_model(wanted.model, trust_remote_code=wanted.trust_remote_code)
    lens = load_lens(
        files,
        device=wanted.device,
        dtype=wanted.model_dtype,
        backend=wanted.backend,
        process_weights=wanted.process_weights,
    )
    return files, lens
