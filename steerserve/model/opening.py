"""Fetches and builds the model that a run's options name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from steerserve.model.lens import load_lens
from steerserve.model.source import fetch_model

if TYPE_CHECKING:
    from steerserve.core.config import Backend
    from steerserve.model.lens import LensModel
    from steerserve.model.source import ModelFiles


class ModelOptions(Protocol):
    """The options that choose the model and how it computes."""

    @property
    def model(self) -> str:
        """Source of the model, as `fetch_model` takes it."""

    @property
    def model_dtype(self) -> str:
        """Number format of the model."""

    @property
    def device(self) -> str:
        """Device of the model."""

    @property
    def backend(self) -> Backend:
        """Backend that runs the model."""

    @property
    def process_weights(self) -> bool:
        """Whether to fold the norms and centre the weights of a HookedTransformer."""

    @property
    def trust_remote_code(self) -> bool:
        """Whether to run code from the model's repository."""


def open_model(options: ModelOptions) -> tuple[ModelFiles, LensModel]:
    """Return the model's files and the model.

    Raises:
        ModelSourceError: the model cannot be fetched or loaded.
    """
    files = fetch_model(options.model, trust_remote_code=options.trust_remote_code)
    lens = load_lens(
        files,
        device=options.device,
        dtype=options.model_dtype,
        backend=options.backend,
        process_weights=options.process_weights,
    )
    return files, lens
