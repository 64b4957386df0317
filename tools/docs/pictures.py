"""Draw the pictures of the concepts page: `python -m tools.docs.pictures` writes docs/pictures/*.svg.

Plain SVG with colours that read on white and on black, so that one file serves both themes.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

_FOLDER = Path(__file__).parents[2] / "docs" / "pictures"
_INK, _ACCENT, _FILL = "#7a7f87", "#d9730d", "rgba(217,115,13,0.14)"
_FONT = "font-family='ui-sans-serif, system-ui, sans-serif'"


def main() -> None:
    """Write all pictures."""
    _FOLDER.mkdir(parents=True, exist_ok=True)
    for name, content in {"edit": edit_picture(), "request": request_picture()}.items():
        (_FOLDER / f"{name}.svg").write_text(content, encoding="utf-8")


def edit_picture() -> str:
    """Draw how an edit changes the residual stream at one hook point."""
    parts = [
        _box(20, 140, 110, 60, "block 17"),
        _box(710, 140, 110, 60, "block 18"),
        _text(180, 160, "x", size=16),
        _box(230, 40, 110, 50, "encode", accent=True),
        _box(365, 40, 110, 50, "edit f", accent=True),
        _box(500, 40, 110, 50, "decode", accent=True),
        _line(200, 170, 200, 65),
        _line(200, 65, 230, 65, arrow=True),
        _line(340, 65, 365, 65, arrow=True),
        _line(475, 65, 500, 65, arrow=True),
        _line(610, 65, 640, 65),
        _line(640, 65, 640, 150, arrow=True),
        _text(285, 110, "f = encode(x)"),
        _text(420, 110, "df: add, clamp, ..."),
        _text(555, 110, "df * W_dec[feature]"),
        f"<circle cx='640' cy='170' r='16' fill='none' stroke='{_ACCENT}' stroke-width='2'/>",
        _text(640, 176, "+", size=18),
        _line(130, 170, 624, 170),
        _line(656, 170, 710, 170, arrow=True),
        _text(420, 192, "x itself passes by: what the dictionary cannot reconstruct is kept"),
        _text(682, 160, "x'", size=16),
    ]
    return _svg(840, 220, "How an edit changes the residual stream", parts)


def request_picture() -> str:
    """Draw the path of a request through the packages."""
    stations = (
        ("server", "JSON, keys, SSE"),
        ("requests", "check, resolve, tokenise"),
        ("engine", "slots, steps, sampling"),
        ("steering", "plan, arithmetic, receipt"),
        ("model", "TransformerLens bridge"),
    )
    parts = []
    for index, (name, subject) in enumerate(stations):
        x = 20 + 165 * index
        parts += [_box(x, 50, 140, 54, name, accent=True), _text(x + 70, 126, subject, size=11)]
        if index:
            parts += [_line(x - 25, 68, x, 68, arrow=True), _line(x, 88, x - 25, 88, arrow=True)]
    parts += [_text(265, 30, "down: one GenerationRequest a sample"), _text(560, 30, "up: one TokenEvent a token")]
    return _svg(840, 150, "The path of a request", parts)


def _svg(width: int, height: int, title: str, parts: list[str]) -> str:
    marker = (
        "<defs><marker id='tip' viewBox='0 0 8 8' refX='7' refY='4' markerWidth='7' markerHeight='7' orient='auto'>"
        f"<path d='M0 0 L8 4 L0 8 z' fill='{_INK}'/></marker></defs>"
    )
    body = "\n".join(parts)
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}' role='img'>"
        f"<title>{escape(title)}</title>{marker}\n{body}\n</svg>\n"
    )


def _box(x: int, y: int, width: int, height: int, label: str, *, accent: bool = False) -> str:
    stroke, fill = (_ACCENT, _FILL) if accent else (_INK, "none")
    rectangle = (
        f"<rect x='{x}' y='{y}' width='{width}' height='{height}' rx='8' fill='{fill}' stroke='{stroke}' "
        "stroke-width='2'/>"
    )
    return rectangle + _text(x + width // 2, y + height // 2 + 5, label, size=15)


def _line(x1: int, y1: int, x2: int, y2: int, *, arrow: bool = False) -> str:
    tip = " marker-end='url(#tip)'" if arrow else ""
    return f"<line x1='{x1}' y1='{y1}' x2='{x2}' y2='{y2}' stroke='{_INK}' stroke-width='2'{tip}/>"


def _text(x: int, y: int, text: str, *, size: int = 12) -> str:
    return f"<text x='{x}' y='{y}' {_FONT} font-size='{size}' fill='{_INK}' text-anchor='middle'>{escape(text)}</text>"


if __name__ == "__main__":
    main()
