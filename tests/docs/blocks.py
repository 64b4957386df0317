"""Finds the code blocks of README.md and docs/, with what the tests are told about each.

A comment that a reader never sees stands before a block:

    <!-- test: skip (reason) -->      it is not run
    <!-- test: run COMMAND -->        this shell command runs first
    <!-- test: exit 1 -->             its last command ends with this status
    <!-- test: file PATH -->          it is written there; so is a YAML block that begins with `# PATH`
    <!-- test: output -->             it is what the block before it prints, despite the words between

A `text` block directly behind another block is what that prints. `...` in it stands for anything.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[\w-]*)[^\n]*\n(?P<text>.*?)^ *```$", re.MULTILINE | re.DOTALL)
_MARKER = re.compile(r"<!-- test: (skip|run|exit|file|output) ?(.*?) ?-->")
_FILE = re.compile(r"# ([\w./-]+\.ya?ml)\n")


@dataclass(frozen=True, slots=True)
class Block:
    """A code block of a page."""

    page: str
    line: int
    """Number of the line that opens the block."""
    language: str
    text: str
    output: str | None = None
    """Output that the page shows; None if it shows none."""
    skip: str | None = None
    """Reason why the block is not run; None if it is run."""
    before: tuple[str, ...] = field(default=())
    """Shell commands that run first."""
    exit: int = 0
    file: str | None = None
    """Path that the block is written to; None if it is not written."""

    def __str__(self) -> str:
        """Name the block as an editor would open it."""
        return f"{self.page}:{self.line}"

    def commands(self) -> list[str]:
        """Return the commands of a shell block, continued lines joined."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def find_blocks(page: Path) -> Iterator[Block]:
    """Yield a page's blocks; a block of output belongs to the one before."""
    text = page.read_text(encoding="utf-8")
    matches = list(_FENCE.finditer(text))
    ends = [0, *(match.end() for match in matches)]
    for index, match in enumerate(matches):
        if _is_output(match, text, ends[index]) and index:
            continue
        following = matches[index + 1] if index + 1 < len(matches) else None
        has_output = following is not None and _is_output(following, text, match.end())
        markers = _MARKER.findall(text[ends[index] : match.start()])
        named = _FILE.match(_dedent(match))
        yield Block(
            page=str(page.relative_to(ROOT)),
            line=text.count("\n", 0, match.start()) + 1,
            language=match["language"],
            text=_dedent(match),
            output=_dedent(following) if following is not None and has_output else None,
            skip=next((words.strip("()") for kind, words in markers if kind == "skip"), None),
            before=tuple(words for kind, words in markers if kind == "run"),
            exit=next((int(words) for kind, words in markers if kind == "exit"), 0),
            file=next((words for kind, words in markers if kind == "file"), named[1] if named else None),
        )


def _is_output(match: re.Match[str], text: str, end_of_previous: int) -> bool:
    between = text[end_of_previous : match.start()]
    is_bound = "output" in (kind for kind, _ in _MARKER.findall(between))
    return match["language"] == "text" and (is_bound or not _MARKER.sub("", between).strip())


def _dedent(match: re.Match[str]) -> str:
    return re.sub(f"^{match['indent']}", "", match["text"], flags=re.MULTILINE)


BLOCKS = [block for page in PAGES for block in find_blocks(page)]


def matches(shown: str, printed: str) -> bool:
    """Return whether the output that a page shows is in what was printed."""
    lines = [re.escape(line.rstrip()).replace(r"\.\.\.", ".*") for line in shown.strip("\n").splitlines()]
    pattern = r"[ \t]*\n".join(lines).replace("\\n.*[ \\t]*\\n", "\\n(?:.*\\n)*?")
    return re.search(pattern, printed) is not None
