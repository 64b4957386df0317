"""The dose-response experiment of one feature or preset, written as the file that runs it again. No torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from steerserve.core.errors import ConfigError
from steerserve.experiments.schema import MAX_ARMS, SCHEMA_FILE
from steerserve.presets.writing import schema_line

if TYPE_CHECKING:
    from pathlib import Path

_FEATURE = re.compile(r"(?:([^/]+)/)?(\d+)")
_WIDTH = 110
DEFAULT_PROMPTS = (
    "Tell me about yourself.",
    "What should I do this weekend?",
    "Write the first lines of a story.",
    "How do I make a good cup of tea?",
)


@dataclass(frozen=True, slots=True)
class Sweep:
    """The options of one sweep."""

    target: str
    """The swept feature, as `3857` or `res17/3857`, or a preset's name."""
    scales: tuple[float, ...]
    unit: str | None = "dose"
    """Unit of a feature's scales; None if the mode takes no unit."""
    mode: str = "add"
    positions: str = "generated"
    prompts: tuple[str, ...] = DEFAULT_PROMPTS
    num_seeds: int = 2
    max_tokens: int = 48
    temperature: float = 0.7
    controls: str = "largest"
    """Which scales get a control arm: `none`, `largest` or `each`."""

    @property
    def name(self) -> str:
        """The experiment's name."""
        return "sweep-" + re.sub(r"[^a-z0-9._-]+", "-", self.target.lower())[:50]


def sweep_file(sweep: Sweep, folder: Path) -> str:
    """Return the YAML of a sweep's experiment, for a file in `folder`.

    Raises:
        ConfigError: no scale is left to sweep, or there would be too many arms.
    """
    scales = [scale for scale in dict.fromkeys(sweep.scales) if scale or not _is_baseline_at_zero(sweep)]
    if not scales:
        raise ConfigError(
            "--scales names no scale but 0, which is the baseline. Give other scales, such as 0.5,1,1.5,2."
        )
    arms: list[dict[str, Any]] = [{"name": "baseline"}]
    arms += [{"name": f"scale {scale:g}", "steering": _steering(sweep, scale)} for scale in scales]
    controlled = {"none": [], "largest": [max(scales, key=abs)], "each": scales}[sweep.controls]
    arms += [{"name": f"control {scale:g}", "control_of": f"scale {scale:g}"} for scale in controlled]
    if len(arms) > MAX_ARMS:
        message = (
            f"The sweep has {len(arms)} arms, and an experiment may have at most {MAX_ARMS}. Give fewer scales, or "
            "--control none."
        )
        raise ConfigError(message)
    head = {
        "name": sweep.name,
        "description": f"What {sweep.target} does, from nothing to {max(scales, key=abs):g}.",
        "prompts": list(sweep.prompts),
    }
    tail = {"seeds": sweep.num_seeds, "max_tokens": sweep.max_tokens, "temperature": sweep.temperature}
    lines = [schema_line(folder, SCHEMA_FILE), _dumped(head), "arms:\n"]
    for arm in arms:
        dumped = yaml.safe_dump(arm, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10_000)
        lines.append(f"  - {dumped}")
    return "".join([*lines, _dumped(tail)])


def _is_baseline_at_zero(sweep: Sweep) -> bool:
    return _FEATURE.fullmatch(sweep.target) is None or sweep.mode == "add"


def _steering(sweep: Sweep, scale: float) -> object:
    match = _FEATURE.fullmatch(sweep.target)
    if match is None:
        return {"presets": [sweep.target], "strength": scale}
    dictionary, feature = match.groups()
    edit: dict[str, Any] = {"dictionary": dictionary} if dictionary else {}
    edit |= {"feature": int(feature), "mode": sweep.mode, "scale": scale}
    if sweep.unit is not None and sweep.mode != "multiply":
        edit["unit"] = sweep.unit
    return [{**edit, "positions": sweep.positions}]


def _dumped(data: dict[str, Any]) -> str:
    dumped: str = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=_WIDTH, default_flow_style=False)
    return dumped
