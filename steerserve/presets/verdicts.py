"""Whether a generated text is what a preset's check asks for. Knows texts and numbers, no model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from steerserve.presets.schema import Check


@dataclass(frozen=True, slots=True)
class Measured:
    """What came out of a check's prompt; numbers that nobody asked for are None."""

    text: str
    activation: float | None = None
    kl: float | None = None
    repetition: float | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """One thing that a check asks for, and what was found."""

    asked: str
    found: str
    is_ok: bool


def verdicts_of(check: Check, measured: Measured) -> Iterator[Verdict]:
    """Hold what was measured against all that a check asks for; upper and lower case are different letters."""
    if check.activates is not None and measured.activation is not None:
        asked = f"feature {check.activates.feature} above {check.activates.above:g}"
        yield Verdict(asked, f"{measured.activation:.3g}", measured.activation > check.activates.above)
    if check.contains_any is not None:
        found = [phrase for phrase in check.contains_any if phrase in measured.text]
        yield Verdict(f"any of {_listed(check.contains_any)}", _listed(found) or "none", bool(found))
    if check.contains_none is not None:
        found = [phrase for phrase in check.contains_none if phrase in measured.text]
        yield Verdict(f"none of {_listed(check.contains_none)}", _listed(found) or "none", not found)
    if check.max_kl is not None and measured.kl is not None:
        yield Verdict(f"KL at most {check.max_kl:g}", f"{measured.kl:.3g}", measured.kl <= check.max_kl)
    if check.max_repetition is not None and measured.repetition is not None:
        is_ok = measured.repetition <= check.max_repetition
        yield Verdict(f"repetition at most {check.max_repetition:g}", f"{measured.repetition:.2f}", is_ok)


def _listed(phrases: list[str]) -> str:
    return ", ".join(repr(phrase) for phrase in phrases)
