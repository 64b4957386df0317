"""The model that a run's options name: fetched and built."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from steerserve.model.lens import load_lens
from steerserve.model.source import fetch_model

if TYPE_CHECKING:
    from steerserve.core.config import Backend
    from steerserve.model.lens import LensModel
    from steerserve.model.source import ModelFiles


class ModelOptions(Protocol):
    """What says which model computes, and how."""

    @property
    def model(self) -> str:
        """Where it comes from."""

    @property
    def model_dtype(self) -> str:
        """In which it computes."""

    @property
    def device(self) -> str:
        """Where it computes."""

    @property
    def backend(self) -> Backend:
        """What runs it."""

    @property
    def process_weights(self) -> bool:
        """Whether a HookedTransformer gets its norms folded and its weights centred."""

    @property
    def trust_remote_code(self) -> bool:
        """Whether code that its repository brings is run."""


def open_model(options: ModelOptions) -> tuple[ModelFiles, LensModel]:
    """Return the model's files and the model.

    Raises:
        ModelSourceError: it cannot be had or loaded.
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
