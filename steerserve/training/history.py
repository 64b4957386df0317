"""The curves of one dictionary's training: some hundred points, however long it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

_MAX_POINTS = 400


@dataclass(slots=True)
class History:
    """What was measured at some steps, on the batch of each."""

    points: list[dict[str, Any]] = field(default_factory=list)
    """With `step`, `losses`, `explained_variance`, `l0`, `dead_fraction` and `resampled` (so far)."""
    resampled: list[dict[str, int]] = field(default_factory=list)
    """With `step` and `features`, how many dead features were begun anew."""
    last: dict[str, Any] = field(default_factory=dict)
    """The newest facts, a point or not."""

    @property
    def num_resampled(self) -> int:
        """How many features were resampled so far."""
        return sum(event["features"] for event in self.resampled)

    def add(self, step: int, facts: Mapping[str, Any], num_steps: int) -> None:
        """Keep the facts of a step; of a long run only every so many become points, and the last one always."""
        self.last = {"step": step, **facts}
        spacing = max(1, num_steps // _MAX_POINTS)
        since = step - self.points[-1]["step"] if self.points else spacing
        if since >= spacing or step == num_steps:
            self.points.append({"step": step, **{name: _rounded(value) for name, value in facts.items()}})

    def add_resampled(self, step: int, num_features: int) -> None:
        """Keep that dead features were begun anew."""
        self.resampled.append({"step": step, "features": num_features})

    def as_json(self) -> dict[str, Any]:
        """Return all of it."""
        return {"points": self.points, "resampled": self.resampled}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> History:
        """Read what `as_json` gave."""
        points = list(value["points"])
        return cls(points, list(value["resampled"]), dict(points[-1]) if points else {})


def _rounded(value: Any) -> Any:  # noqa: ANN401 a number, or numbers by name
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    return float(f"{value:.6g}") if isinstance(value, float) else value
