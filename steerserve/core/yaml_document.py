"""A YAML file read strictly, with the line and column of everything in it.

Knows nothing of what the data mean. Duplicate keys, aliases, several documents in a file and tags that would build
objects are refused; nothing but plain data comes out. So are numbers that YAML reads in another way than people do
(`0123` is 83 to it), and texts so large or so deeply nested that reading them would hold up a server.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import yaml

from steerserve.core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from steerserve.core.findings import DataPath

_UNPRINTABLE: re.Pattern[str] = yaml.reader.Reader.NON_PRINTABLE
MAX_DEPTH = 20
"""Lists and mappings in one another."""
MAX_VALUES = 20_000
"""Keys, values, lists and mappings of one text: some seconds of reading at most."""
_NUMBER = re.compile(r"[-+]?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")


@dataclass(frozen=True, slots=True)
class YamlDocument:
    """The data of a file, and where each value stands in it."""

    name: str
    data: object
    marks: Mapping[DataPath, tuple[int, int]]
    """Line and column, from 1, of each key of a mapping and each item of a list."""

    def where(self, path: DataPath) -> str:
        """Return `file:line:column` of the value at `path`, or of the nearest value around it."""
        line, column = self.position(path)
        return f"{self.name}:{line}:{column}"

    def position(self, path: DataPath) -> tuple[int, int]:
        """Return line and column, from 1, of the value at `path`, or of the nearest value around it."""
        while path not in self.marks and path:
            path = path[:-1]
        return self.marks[path]


def load_yaml(path: Path) -> YamlDocument:
    """Read a file.

    Raises:
        ConfigError: the file is missing, unreadable, not UTF-8 or not the YAML described above.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        message = f"There is no file {path}."
        raise ConfigError(message) from error
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        message = f"{path} cannot be read: {reason}."
        raise ConfigError(message) from error
    return parse_yaml(text, name=str(path))


def parse_yaml(text: str, *, name: str) -> YamlDocument:
    """Read a text; `name` is what messages call it.

    Raises:
        ConfigError: as for `load_yaml`.
    """
    try:
        reader = _Reader(text)
        data = reader.read()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        message = f"{where}: not valid YAML: {error.problem or error.context}."
        raise ConfigError(message) from error
    except yaml.YAMLError as error:
        message = f"{name}: not valid YAML: {str(error).splitlines()[0]}."
        raise ConfigError(message) from error
    return YamlDocument(name, data, reader.marks)


class _Loader(yaml.SafeLoader):
    """Composes nodes until there are too many, before anything else is done with them."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._num_values = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self._depth += 1
        self._num_values += 1
        if self._depth > MAX_DEPTH + 1:  # the values in the innermost lists count as a level too
            self._refuse(f"it is nested too deeply: at most {MAX_DEPTH} lists and mappings may be in one another")
        if self._num_values > MAX_VALUES:
            self._refuse(f"it is too much: a text may have {MAX_VALUES} keys and values at most")
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def _refuse(self, problem: str) -> NoReturn:
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=self.peek_event().start_mark)  # type: ignore[no-untyped-call]


def parse_placed(text: str, *, name: str) -> YamlDocument:
    """Read a text as `parse_yaml` does; whatever is wrong is said with line and column.

    Raises:
        ConfigError: as for `load_yaml`, or a character cannot stand in YAML.
    """
    strange = _UNPRINTABLE.search(text)
    if strange is not None:
        line, column = line_and_column(text[: strange.start()])
        raise ConfigError(f"{name}:{line}:{column}: the character {strange[0]!r} cannot stand in YAML; take it out.")
    try:
        return parse_yaml(text, name=name)
    except ConfigError as error:
        said = error.message.removeprefix(name)
        place = "" if re.match(r":\d+:\d+: ", said) else ":1:1"
        raise ConfigError(f"{name}{place}{said}") from error


def line_and_column(before: str) -> tuple[int, int]:
    """Return the place, from 1, that follows `before`."""
    return before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1


class _Reader:
    """Turns the nodes of one text into plain data and marks."""

    def __init__(self, text: str) -> None:
        self.marks: dict[DataPath, tuple[int, int]] = {(): (1, 1)}
        self._loader = _Loader(text)
        self._seen: set[int] = set()

    def read(self) -> object:
        try:
            node = self._loader.get_single_node()
            return None if node is None else self._data(node, ())
        finally:
            self._loader.dispose()

    def _data(self, node: yaml.Node, path: DataPath) -> object:
        # An alias is the very node of its anchor: refused, since a short file could stand for endless data.
        if id(node) in self._seen:
            self._refuse(node, "aliases (*name) are not supported here")
        self._seen.add(id(node))
        if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
            return [self._item(item, (*path, place)) for place, item in enumerate(node.value)]
        scalar = self._scalar(node)
        if not isinstance(scalar, str | int | float | None):
            self._refuse(node, f"{node.tag} is no plain value (put text that looks like a date in quotes)")
        if isinstance(scalar, int | float) and not isinstance(scalar, bool):
            self._check_number(node, scalar)
        return scalar

    def _check_number(self, node: yaml.Node, number: float) -> None:
        """Refuse what YAML 1.1 reads as a number that is not the one it looks like: 0123, 1:30, 1_0, 0b11, 0x1f."""
        is_endless = node.tag.endswith(":float") and not math.isfinite(number)  # which looks like nothing else
        if is_endless or _NUMBER.fullmatch(node.value):
            return
        meant = f"{node.value[:40]!r} is no plain number (YAML reads {_written(number)})"
        advice = "write plain digits, such as 12, -0.5 or 1.5e+3, or put quotes around it if it is text"
        self._refuse(node, f"{meant}: {advice}")

    def _scalar(self, node: yaml.Node) -> object:
        """Return the value of a single word; a collection is returned as the node it is."""
        if not isinstance(node, yaml.ScalarNode):
            return node
        try:
            scalar: object = self._loader.construct_object(node)
        except (ValueError, LookupError, AttributeError) as error:  # 2026-13-45, 5,000 digits, or !!int ""
            self._refuse(node, f"{node.value[:40]!r} is no {node.tag.rpartition(':')[2]} ({error})")
        return scalar

    def _mapping(self, node: yaml.MappingNode, path: DataPath) -> dict[str, object]:
        data: dict[str, object] = {}
        for key_node, value_node in node.value:
            key = self._scalar(key_node)
            if not isinstance(key, str):
                self._refuse(key_node, "a key must be text (put quotes around numbers and words such as yes, no, on)")
            if key in data:
                self._refuse(key_node, f"the key {key!r} is there twice")
            self._mark(key_node, (*path, key))
            data[key] = self._data(value_node, (*path, key))
        return data

    def _item(self, node: yaml.Node, path: DataPath) -> object:
        self._mark(node, path)
        return self._data(node, path)

    def _mark(self, node: yaml.Node, path: DataPath) -> None:
        self.marks[path] = (node.start_mark.line + 1, node.start_mark.column + 1)

    def _refuse(self, node: yaml.Node, problem: str) -> NoReturn:
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def _written(number: float) -> str:
    try:
        return str(number)[:40]
    except ValueError:  # thousands of digits
        return "a number of thousands of digits"
