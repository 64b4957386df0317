"""The picture of a watched answer in a terminal: coloured tokens, and the features of the last one beside them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from rich.console import Group
from rich.panel import Panel
from rich.style import Style
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

    from steerserve.commands.watch_stream import FeatureInfo, SeenToken

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Control characters except tab and line feed: a terminal would obey those that a model generates."""
_STEPS = 12
"""Number of shades; more cannot be distinguished."""
_STRONGEST = (214, 93, 14)
_BLACK_TEXT_FROM = 0.45
"""Share of the largest activation from which the text is black, to stay readable on its background."""
_PLAIN_TOP = 3
_TEXT_SHARE, _SIDE_SHARE = 3, 2
"""Parts of the terminal's width."""
_BORDER = 4
"""Columns, and at most lines, that the borders take."""


class WatchView:
    """Collects tokens and draws them."""

    def __init__(self, feature: int | None, info: FeatureInfo, *, title: str) -> None:
        """Colour tokens by the activation of `feature`, or of each token's strongest feature if it is None."""
        self._feature = feature
        self._info = info
        self._title = _on_one_line(title)
        self.is_live = False
        """Whether to draw only the newest lines, as many as the terminal has."""
        self._tokens: list[SeenToken] = []
        self._largest = 0.0

    def add(self, token: SeenToken) -> None:
        """Add the next token."""
        self._tokens.append(token)
        self._largest = max(self._largest, self.activation(token))

    @property
    def has_tokens(self) -> bool:
        """Whether there are tokens to draw."""
        return bool(self._tokens)

    def activation(self, token: SeenToken) -> float:
        """Return the activation that colours a token."""
        if token.watched is not None:
            return token.watched
        return token.top[0].activation if token.top else 0.0

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the text, and beside it the features of its last token."""
        text = self._text()
        if self.is_live:
            width = options.max_width * _TEXT_SHARE // (_TEXT_SHARE + _SIDE_SHARE) - _BORDER
            lines = text.wrap(console, max(width, 1))
            text = Text("\n").join(lines[-max(console.height - _BORDER, 1) :])
        page = Table.grid(expand=True)
        page.add_column(ratio=_TEXT_SHARE)
        page.add_column(ratio=_SIDE_SHARE)
        page.add_row(Panel(text, title=Text(self._title), title_align="left", border_style="dim"), self._side())
        yield page

    def _text(self) -> Text:
        text = Text(overflow="fold")
        scale = self._info.max or self._largest
        for token in self._tokens:
            share = min(self.activation(token) / scale, 1.0) if scale > 0 else 0.0
            text.append(_CONTROLS.sub("", token.text), _style(share, is_prompt=token.is_prompt))
        return text

    def line(self, token: SeenToken) -> str:
        """Write a token and its features as one line of plain text."""
        top = [
            f"{seen.feature} {_on_one_line(seen.label or '')}".strip() + f" {seen.activation:.3g}"
            for seen in token.top[:_PLAIN_TOP]
        ]
        return f"{token.text!r}\t{self.activation(token):.4g}\t{_on_one_line(token.skipped or ', '.join(top))}"

    def _side(self) -> RenderableType:
        table = Table(box=None, expand=True, padding=(0, 1, 0, 0))
        table.add_column("feature", justify="right")
        table.add_column("act", justify="right")
        table.add_column("label", ratio=1, no_wrap=True, overflow="ellipsis")
        last = self._tokens[-1] if self._tokens else None
        for seen in last.top if last is not None else ():
            is_watched = seen.feature == self._feature
            act = f"{seen.activation:.3g}{_after(last, seen.feature)}"
            table.add_row(
                str(seen.feature),
                act,
                Text(_on_one_line(seen.label or ""), end=""),
                style="bold" if is_watched else None,
            )
        about = Text(no_wrap=True, overflow="ellipsis")
        if last is not None:
            about.append(repr(last.text), "bold")
            about.append(f"  {_on_one_line(last.skipped)} token, not read" if last.skipped else "")
            if self._feature is not None and not last.skipped:
                about.append(f"  {self._feature}: {self.activation(last):.3g}{_after(last, self._feature)}")
        return Panel(Group(about, table), title="last token", title_align="left", border_style="dim")


def _after(token: SeenToken | None, feature: int) -> str:
    """Return a feature's activation after steering, behind an arrow; empty if steering did not edit it."""
    return f" → {token.edited[feature]:.3g}" if token is not None and feature in token.edited else ""


def _on_one_line(text: str) -> str:
    """Return text without control characters, each run of white space as one space."""
    return " ".join(_CONTROLS.sub("", text).split())


def _style(share: float, *, is_prompt: bool) -> Style:
    step = round(share * _STEPS) / _STEPS
    if step <= 0:
        return Style(dim=is_prompt)
    red, green, blue = (round(40 + (channel - 40) * step) for channel in _STRONGEST)
    return Style(
        color="black" if step >= _BLACK_TEXT_FROM else "white", bgcolor=f"rgb({red},{green},{blue})", dim=is_prompt
    )
