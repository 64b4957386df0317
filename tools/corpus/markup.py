"""Prose out of markup: HTML, Perl's POD, and the questions and answers of AIML. Knows text, not files."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_NO_PROSE = {"head", "nav", "noscript", "object", "pre", "script", "select", "style", "svg", "table", "textarea"}
_BLOCKS = {
    *("address", "article", "aside", "blockquote", "body", "caption", "dd", "div", "dl", "dt", "figure", "footer"),
    *("form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "li", "main", "ol", "p", "section", "title", "ul"),
}
_INLINE_IN_ANSWERS = {"a", "b", "br", "em", "i", "li", "p", "random", "strong", "template", "ul"}
_SILENT_IN_ANSWERS = {"gossip", "learn", "script", "system", "think"}
_QUESTION = re.compile(r"(Are|Can|Could|Did|Do|Does|Has|Have|How|Is|Was|What|When|Where|Which|Who|Why|Will|Would)\b")
_POD_NAMES = {"lt": "<", "gt": ">", "verbar": "|", "sol": "/"}
_POD_CODE = re.compile(r"([A-Z])(?:<([^<>]*)>|<<+\s+(.*?)\s+>>+)", re.DOTALL)
_POD_DEPTH = 8


def html_paragraphs(content: str) -> Iterator[str]:
    """Yield the paragraphs, headings and list items of a page; tables, code and navigation are left out."""
    parser = _Page()
    parser.feed(content)
    parser.close()
    yield from parser.finish()


class _Page(HTMLParser):
    """Collects text by the blocks it stands in."""

    def __init__(self) -> None:
        super().__init__()
        self._paragraphs: list[str] = []
        self._words: list[str] = []
        self._left_out: list[str] = []
        """Open elements whose text is not prose, outermost first."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        del attrs
        if tag in _NO_PROSE:
            self._end_block()
            self._left_out.append(tag)
        elif tag in _BLOCKS:
            self._end_block()
        elif tag == "br":
            self._words.append(" ")

    def handle_endtag(self, tag: str) -> None:
        if tag in self._left_out:
            while self._left_out.pop() != tag:  # elements inside it that were never closed end with it
                pass
        elif tag in _BLOCKS:
            self._end_block()

    def handle_data(self, data: str) -> None:
        if not self._left_out:
            self._words.append(data)

    def finish(self) -> list[str]:
        self._end_block()
        return self._paragraphs

    def _end_block(self) -> None:
        text = " ".join("".join(self._words).replace("\u00b6", "").split())  # the sign that links to a heading
        self._words.clear()
        if text:
            self._paragraphs.append(text)


def pod_paragraphs(content: str) -> Iterator[str]:
    """Yield the paragraphs and headings of a page in Perl's documentation format; indented code is left out.

    Source: the manual page perlpod.
    """
    is_skipped = False
    for paragraph in re.split(r"\n[ \t]*\n", content):
        block = paragraph.strip("\n")
        if block.startswith(("=begin", "=end")):
            is_skipped = block.startswith("=begin")
        elif is_skipped or not block or block[0] in " \t" or block.startswith(("=for", "=encoding")):
            continue
        elif block.startswith("="):
            _, _, heading = block.partition(" ")
            yield _pod_text(heading.strip().removeprefix("*"))
        else:
            yield _pod_text(block)


def _pod_text(text: str) -> str:
    for _ in range(_POD_DEPTH):  # from the inside out
        text, count = _POD_CODE.subn(_pod_code, text)
        if not count:
            break
    return " ".join(text.replace("\x01", "<").replace("\x02", ">").split())


def _pod_code(match: re.Match[str]) -> str:
    kind, content = match[1], match[2] if match[3] is None else match[3]
    if kind in "XZ":
        return ""
    if kind == "E":
        content = _POD_NAMES.get(content, content)
    elif kind == "L" and "|" in content:
        content = content.partition("|")[0]
    # Brackets of the text must not be read as those of a formatting code around it.
    return content.replace("<", "\x01").replace(">", "\x02")


def aiml_pairs(content: str) -> Iterator[tuple[str, str]]:
    """Yield questions and answers that need no context, with neither wildcards nor values that a bot fills in."""
    parser = _Categories()
    parser.feed(content)
    parser.close()
    yield from parser.pairs


class _Categories(HTMLParser):
    """Reads AIML as an HTML parser does, since much of it is not well-formed XML."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs: list[tuple[str, str]] = []
        self._begin()

    def _begin(self) -> None:
        self._element = ""
        self._pattern: list[str] = []
        self._answer: list[str] = []
        self._num_choices = 0
        self._silent: list[str] = []
        self._is_plain = True

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        del attrs
        if tag == "category":
            self._begin()
        elif tag in {"pattern", "template"}:
            self._element = tag
        elif self._element != "template":
            self._is_plain = self._is_plain and tag != "that"  # an answer to one sentence of the bot only
        elif tag in _SILENT_IN_ANSWERS:
            self._silent.append(tag)
        elif self._silent:
            return
        else:
            self._num_choices += tag == "li"
            is_read = self._num_choices <= 1
            self._is_plain = self._is_plain and (not is_read or tag in _INLINE_IN_ANSWERS)
            self._answer.append(" ")

    def handle_endtag(self, tag: str) -> None:
        if tag in self._silent:
            while self._silent.pop() != tag:
                pass
        elif tag in {"pattern", "template"}:
            self._element = ""
        elif tag == "category":
            self._end_pair()

    def handle_data(self, data: str) -> None:
        if self._element == "pattern":
            self._pattern.append(data)
        elif self._element == "template" and not self._silent and self._num_choices <= 1:
            self._answer.append(data)

    def _end_pair(self) -> None:
        pattern, answer = (" ".join("".join(words).split()) for words in (self._pattern, self._answer))
        if self._is_plain and pattern and answer and not set("*_<") & set(pattern):
            self.pairs.append((_as_sentence(pattern), answer))
        self._begin()


def _as_sentence(pattern: str) -> str:
    """Return a pattern, which is in capitals without signs, as a person would have written it."""
    sentence = re.sub(r"\bi\b", "I", pattern.capitalize())
    return f"{sentence}{'?' if _QUESTION.match(sentence) else '.'}"
