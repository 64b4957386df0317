"""Results as HTML for notebooks: tinted tokens, receipts, tables. All text is escaped; colours suit light and dark."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Protocol

    from steerserve.wire.compare import Comparison, Sample
    from steerserve.wire.features import FeatureObject, FeatureRow, Snippet
    from steerserve.wire.receipt import Receipt
    from steerserve.wire.texts import ContrastObject, InspectionObject, TokenActivations

    class TokenWithFeatures(Protocol):
        """A token as answers and inspections give it."""

        @property
        def token(self) -> str:
            """The token's text."""

        @property
        def dictionaries(self) -> Mapping[str, TokenActivations]:
            """The features at the token, by dictionary id."""


_TINT = "255, 140, 0"
"""An orange that reads on white and on black, as red, green and blue."""
_MAX_OPACITY = 0.75
_MAX_SNIPPETS = 5
_TEXT_STYLE = "white-space:pre-wrap;line-height:1.7;max-width:60em"
_CELL_STYLE = "text-align:left;vertical-align:top"


@dataclass(frozen=True)
class Html:
    """A piece of HTML that a notebook shows."""

    source: str

    def _repr_html_(self) -> str:
        return self.source


def paragraph(text: str) -> str:
    """Show a text as it is, line breaks included."""
    return f'<div style="{_TEXT_STYLE}">{escape(text)}</div>'


def tinted_tokens(
    tokens: Sequence[TokenWithFeatures],
    feature: int | None = None,
    dictionary: str | None = None,
    preferred: Iterable[int] = (),
) -> str:
    """Show tokens tinted by a feature's activation: the darker, the closer to its largest in this text.

    Without `feature` it is the first of `preferred` that is active, or else the feature with the largest total.

    Raises:
        ValueError: the tokens carry no features, or not those of that dictionary.
    """
    if not tokens:
        message = "There are no features to show. Ask for them with features=True."
        raise ValueError(message)
    name = dictionary if dictionary is not None else next(iter(tokens[0].dictionaries))
    if any(name not in token.dictionaries for token in tokens):
        message = f"The tokens have no features of dictionary {name!r}, but of {', '.join(tokens[0].dictionaries)}."
        raise ValueError(message)
    by_token = [{entry.feature: entry.activation for entry in token.dictionaries[name].top} for token in tokens]
    labels = {entry.feature: entry.label for token in tokens for entry in token.dictionaries[name].top}
    largest: dict[int, float] = {}
    for acts in by_token:
        for index, act in acts.items():
            largest[index] = max(largest.get(index, 0.0), act)
    totals = {index: sum(acts.get(index, 0.0) for acts in by_token) for index in largest}
    strongest = max(totals, key=totals.__getitem__, default=None)
    shown = feature if feature is not None else next((index for index in preferred if index in largest), strongest)
    top = largest.get(shown, 0.0) if shown is not None else 0.0
    spans = [
        _tinted(token.token, acts.get(shown, 0.0) if shown is not None else 0.0, top, _hover(acts, labels))
        for token, acts in zip(tokens, by_token, strict=True)
    ]
    label = labels.get(shown) if shown is not None else None
    caption = (
        "no active feature" if shown is None else f"{name}/{shown}{f' · {label}' if label else ''} · largest {top:.3g}"
    )
    return f'<div style="{_TEXT_STYLE}">{"".join(spans)}</div><small>tinted by {escape(caption)}</small>'


def receipt_table(receipt: Receipt) -> str:
    """Show what each edit did."""
    rows = [
        (
            edit.hook if edit.feature is None else f"{edit.dictionary}/{edit.feature}",
            edit.label or "",
            f"{edit.mode}{'' if edit.scale is None else f' {edit.scale:g} {edit.unit}'}",
            "" if edit.raw_scale is None else f"{edit.raw_scale:.4g}",
            f"{edit.tokens_edited} ({edit.tokens_skipped} skipped)",
            f"{edit.mean_change:.3f}",
        )
        for edit in receipt.edits
    ]
    head = ("edit of", "label", "mode", "raw scale", "tokens", "|dx| / |x|")
    return table(head, rows) + f"<small>receipt {escape(receipt.fingerprint[:12])}</small>"


def comparison_table(comparison: Comparison) -> str:
    """Show the arms of a comparison side by side, a row for each sample."""
    head = [arm.name for arm in comparison.arms]
    rows = [
        [f"{paragraph(arm.samples[index].text)}{_metrics(arm.samples[index])}" for arm in comparison.arms]
        for index in range(len(comparison.arms[0].samples))
    ]
    return table(head, rows, is_html=True) + f"<small>seed {comparison.seed}</small>"


def strongest_table(inspection: InspectionObject) -> str:
    """Show the strongest features over a text."""
    rows = [
        (f"{name}/{entry.feature}", entry.label or "", f"{entry.activation:.3g}", entry.token, str(entry.tokens_active))
        for name, entries in inspection.strongest.items()
        for entry in entries
    ]
    return table(("feature", "label", "largest", "at", "active tokens"), rows)


def contrast_table(contrast: ContrastObject) -> str:
    """Show the features that tell two sets apart."""
    rows = [
        (
            str(entry.feature),
            entry.label or "",
            f"{entry.auc:.2f}",
            f"{entry.held_out_auc:.2f}",
            f"{entry.p_value:.3g}",
            "" if entry.dose is None else f"{entry.dose:.4g}",
        )
        for entry in contrast.data
    ]
    warnings = "".join(f"<p>{escape(sentence)}</p>" for sentence in contrast.warnings)
    return table(("feature", "label", "AUC", "held out", "p", "dose"), rows) + warnings


def feature_table(features: Iterable[FeatureRow]) -> str:
    """Show features found by a search."""
    rows = [
        [
            str(entry.feature),
            escape(entry.label or ""),
            "" if entry.density is None else f"{100 * entry.density:.3g} %",
            "" if entry.dose is None else f"{entry.dose:.4g}",
            "" if entry.snippet is None else snippet(entry.snippet),
        ]
        for entry in features
    ]
    return table(("feature", "label", "density", "dose", "strongest snippet"), rows, is_html=True)


def feature_page(feature: FeatureObject) -> str:
    """Show one feature: its label, its numbers, and its strongest snippets."""
    numbers = {"density": feature.density, "max": feature.max, "dose": feature.dose}
    facts = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items() if value is not None)
    title = f"<b>{escape(feature.dictionary)}/{feature.feature}</b> {escape(feature.label or 'no label')}"
    snippets = "".join(f"<li>{snippet(entry)}</li>" for entry in feature.snippets[:_MAX_SNIPPETS])
    promoted = escape(", ".join(repr(entry.token) for entry in feature.promoted[:10]))
    return f"<div>{title}<br><small>{facts}</small><ul>{snippets}</ul><small>promotes {promoted}</small></div>"


def snippet(entry: Snippet) -> str:
    """Show a snippet, its tokens tinted by the feature's activation."""
    top = max((abs(act) for act in entry.activations), default=0.0)
    return "".join(
        _tinted(token, act, top, f"{act:.3g}") for token, act in zip(entry.tokens, entry.activations, strict=True)
    )


def table(head: Iterable[str], rows: Iterable[Sequence[str]], *, is_html: bool = False) -> str:
    """Show rows under a head; cells are text unless `is_html`."""
    cells = "".join(f'<th style="{_CELL_STYLE}">{escape(name)}</th>' for name in head)
    lines = "".join(f"<tr>{''.join(_cell(cell if is_html else escape(cell)) for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{lines}</tbody></table>"


def _cell(content: str) -> str:
    return f'<td style="{_CELL_STYLE}">{content}</td>'


def _tinted(text: str, act: float, top: float, hover: str) -> str:
    share = abs(act) / top if top else 0.0
    style = f' style="background:rgba({_TINT},{_MAX_OPACITY * share:.2f});border-radius:3px"' if share else ""
    return f'<span title="{escape(hover)}"{style}>{escape(text)}</span>'


def _hover(acts: Mapping[int, float], labels: Mapping[int, str | None]) -> str:
    """List the strongest features of a token, for the hover text."""
    entries = sorted(acts.items(), key=lambda pair: -abs(pair[1]))[:5]
    return "\n".join(f"{feature} {labels.get(feature) or ''} {act:.3g}" for feature, act in entries)


def _metrics(sample: Sample) -> str:
    if sample.metrics is None:
        return ""
    numbers = {
        "KL": sample.metrics.kl,
        "surprise": sample.metrics.surprise,
        "repetition": sample.metrics.repetition,
    }
    facts = ", ".join(f"{name} {value:.2f}" for name, value in numbers.items() if value is not None)
    return f"<small>{facts}</small>"
