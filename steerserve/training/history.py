"""The curves of one dictionary's training: a few hundred points, however long it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

_MAX_POINTS = 400


@dataclass(slots=True)
class History:
    """Measurements at a few hundred steps, on the batch of each."""

    points: list[dict[str, Any]] = field(default_factory=list)
    """Measurements: `step`, `losses`, `explained_variance`, `l0`, `dead_fraction` and `resampled` (so far)."""
    resampled: list[dict[str, int]] = field(default_factory=list)
    """Resampling events: `step`, and `features`, the number of dead features that were resampled."""
    last: dict[str, Any] = field(default_factory=dict)
    """The newest measurements, whether they became a point or not."""

    @property
    def num_resampled(self) -> int:
        """Number of features that were resampled so far."""
        return sum(event["features"] for event in self.resampled)

    def add(self, step: int, facts: Mapping[str, Any], num_steps: int) -> None:
        """Record a step's measurements. In a long run only a few hundred become points, the last one always."""
        self.last = {"step": step, **facts}
        spacing = max(1, num_steps // _MAX_POINTS)
        since = step - self.points[-1]["step"] if self.points else spacing
        if since >= spacing or step == num_steps:
            self.points.append({"step": step, **{name: _rounded(value) for name, value in facts.items()}})

    def add_resampled(self, step: int, num_features: int) -> None:
        """Record that dead features were resampled."""
        self.resampled.append({"step": step, "features": num_features})

    def as_json(self) -> dict[str, Any]:
        """Return points and resampling events as JSON, which `from_json` reads."""
        return {"points": self.points, "resampled": self.resampled}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> History:
        """Read what `as_json` returned."""
        points = list(value["points"])
        return cls(points, list(value["resampled"]), dict(points[-1]) if points else {})


def _rounded(value: Any) -> Any:  # noqa: ANN401 a number, or numbers by name
    if isinstance(value, dict):
        return {name: _rounded(number) for name, number in value.items()}
    return float(f"{value:.6g}") if isinstance(value, float) else value
