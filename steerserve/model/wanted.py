"""What options say of the model that a run uses. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from steerserve.core.config import Backend


class WantedModel(Protocol):
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
