"""What `SteeredModel` needs of the model behind it: the server's routes as calls, JSON in and out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from jaxtyping import Float
    from torch import Tensor

    from steerserve.requests.preset_checks import CheckResult
    from steerserve.requests.preset_making import MadePreset
    from steerserve.store.search import Sort

    Json = Mapping[str, Any]

Kind = Literal["chat", "completions"]
"""The generating route: `/v1/chat/completions` or `/v1/completions`."""


class Chunks(Protocol):
    """The chunks of one streamed answer. Closing it ends the generation, at any time and any number of times."""

    def __iter__(self) -> Iterator[Json]:
        """Yield the JSON objects that the route streams."""

    def close(self) -> None:
        """End the generation if it still runs."""


class Backend(Protocol):
    """A model in this process or behind an address. Every call checks its input as the server does.

    Raises:
        SteerserveError: the input cannot be honoured; `param` names the field.
    """

    @property
    def model_id(self) -> str:
        """The name of the served model."""

    def generate(self, kind: Kind, body: Json) -> dict[str, Any]:
        """Return the whole answer of a generating route."""

    def stream(self, kind: Kind, body: Json) -> Chunks:
        """Return the chunks of a generating route as they come."""

    def compare(self, body: Json) -> dict[str, Any]:
        """Return what `/v1/compare` answers."""

    def inspect(self, body: Json) -> dict[str, Any]:
        """Return what `/v1/features/inspect` answers."""

    def contrast(self, body: Json) -> dict[str, Any]:
        """Return what `/v1/features/contrast` answers."""

    def search(self, query: str, *, dictionary: str | None, sort: Sort, limit: int) -> dict[str, Any]:
        """Return what `/v1/features` answers."""

    def feature(self, dictionary: str, feature: int) -> dict[str, Any]:
        """Return what `/v1/features/{dictionary}/{feature}` answers."""

    def dictionaries(self) -> list[dict[str, Any]]:
        """Return the loaded dictionaries, the default one marked."""

    def load_dictionary(self, dictionary_id: str, source: str) -> dict[str, Any]:
        """Load a dictionary, in place of one with the same id; return its object."""

    def unload_dictionary(self, dictionary_id: str) -> None:
        """Stop serving a dictionary."""

    def presets(self) -> list[str]:
        """Return the names of the presets that can be used with the model."""

    def check_preset(self, name: str) -> list[CheckResult]:
        """Run a preset's checks on the model."""

    def make_preset(
        self,
        name: str,
        positive: Sequence[str],
        negative: Sequence[str],
        *,
        dictionary: str | None,
        max_edits: int,
        description: str,
    ) -> MadePreset:
        """Make a preset of the features that tell two sets of texts apart."""

    def activations(self, text: str, hook_names: Sequence[str]) -> dict[str, Float[Tensor, "pos d_model"]]:
        """Return the activations of a text at hook points, in float32."""

    def start_job(self, kind: Literal["train", "interpret"], body: Json) -> dict[str, Any]:
        """Start a job; return its object."""

    def job(self, job_id: str) -> dict[str, Any]:
        """Return a job as it is now."""

    def cancel_job(self, job_id: str) -> dict[str, Any]:
        """Cancel a job; return it as it is then."""

    def close(self) -> None:
        """Free the model, or the connections. Any number of times."""
