"""A YAML file, parsed strictly, with the line and column of every value.

This module does not know what the data mean. Only plain data come out: duplicate keys, aliases, several documents in a
file and tags that would build objects are refused. So are numbers that YAML reads in another way than people do (`0123`
is 83 in YAML), and texts so large or so deeply nested that parsing them would block a server.
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
"""Largest depth of nested lists and mappings."""
MAX_VALUES = 20_000
"""Largest number of keys, values, lists and mappings of a text. So many take some seconds to parse."""
_NUMBER = re.compile(r"[-+]?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")


@dataclass(frozen=True, slots=True)
class YamlDocument:
    """The data of a file, and the line and column of each value."""

    name: str
    """What messages call the file."""
    data: object
    """Lists, mappings and plain values, as the file has them."""
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
    return parse_yaml(read_text(path), name=str(path))


def read_text(path: Path, max_bytes: int | None = None) -> str:
    """Return the text of a file of at most `max_bytes`.

    Raises:
        ConfigError: the file is missing, unreadable, too large or not UTF-8.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ConfigError(f"There is no file {path}.") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from error
    return decode_text(data, name=str(path), max_bytes=max_bytes)


def decode_text(data: bytes, *, name: str, max_bytes: int | None = None) -> str:
    """Return the text of a file's bytes; `name` is what messages call the file.

    Raises:
        ConfigError: there are more than `max_bytes`, or they are not UTF-8; the message has line and column.
    """
    if max_bytes is not None and len(data) > max_bytes:
        raise ConfigError(f"{name}:1:1: the file may have at most {max_bytes} bytes, and it has {len(data)}.")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        position = _position_after(data[: error.start].decode("utf-8"))
        raise ConfigError(f"{name}:{position}: the file is not UTF-8 text; save it as UTF-8.") from error


def parse_yaml(text: str, *, name: str) -> YamlDocument:
    """Parse a text; `name` is what messages call it.

    Raises:
        ConfigError: the text is not the YAML described above; the message has line and column.
    """
    if (unprintable := _UNPRINTABLE.search(text)) is not None:
        position = _position_after(text[: unprintable.start()])
        raise ConfigError(f"{name}:{position}: YAML does not allow the character {unprintable[0]!r}; take it out.")
    try:
        builder = _DataBuilder(text)
        data = builder.build()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        position = f"{mark.line + 1}:{mark.column + 1}" if mark else "1:1"
        raise ConfigError(f"{name}:{position}: not valid YAML: {error.problem or error.context}.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}:1:1: not valid YAML: {str(error).splitlines()[0]}.") from error
    return YamlDocument(name, data, builder.marks)


def _position_after(before: str) -> str:
    """Return `line:column`, from 1, of the character that follows `before`."""
    return f"{before.count(chr(10)) + 1}:{len(before) - (before.rfind(chr(10)) + 1) + 1}"


class _Loader(yaml.SafeLoader):
    """Composes nodes, and stops if there are too many, before they become data."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._num_values = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self._depth += 1
        self._num_values += 1
        if self._depth > MAX_DEPTH + 1:  # the values in the innermost lists count as a level too
            self._refuse(f"it is nested too deeply; lists and mappings have at most {MAX_DEPTH} levels")
        if self._num_values > MAX_VALUES:
            self._refuse(f"it is too large; a text has at most {MAX_VALUES} keys and values")
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def _refuse(self, problem: str) -> NoReturn:
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=self.peek_event().start_mark)  # type: ignore[no-untyped-call]


class _DataBuilder:
    """Turns the nodes of one text into plain data and marks."""

    def __init__(self, text: str) -> None:
        self.marks: dict[DataPath, tuple[int, int]] = {(): (1, 1)}
        self._loader = _Loader(text)
        self._seen: set[int] = set()

    def build(self) -> object:
        try:
            node = self._loader.get_single_node()
            return None if node is None else self._data(node, ())
        finally:
            self._loader.dispose()

    def _data(self, node: yaml.Node, path: DataPath) -> object:
        # An alias is the same node as its anchor. Refused, since a short file could stand for data without end.
        if id(node) in self._seen:
            self._refuse(node, "aliases (*name) are not supported here")
        self._seen.add(id(node))
        if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
            return [self._item(item, (*path, index)) for index, item in enumerate(node.value)]
        scalar = self._scalar(node)
        if not isinstance(scalar, str | int | float | None):
            self._refuse(node, f"{node.tag} is not a plain value (put text that looks like a date in quotes)")
        if isinstance(scalar, int | float) and not isinstance(scalar, bool):
            self._check_number(node, scalar)
        return scalar

    def _check_number(self, node: yaml.Node, number: float) -> None:
        """Refuse a number that YAML 1.1 reads as another than it looks like: 0123, 1:30, 1_0, 0b11, 0x1f."""
        is_infinite_or_nan = node.tag.endswith(":float") and not math.isfinite(
            number
        )  # .inf and .nan cannot be mistaken for anything else
        if is_infinite_or_nan or _NUMBER.fullmatch(node.value):
            return
        meant = f"{node.value[:40]!r} is not a plain number (YAML reads {_written(number)})"
        advice = "write plain digits, such as 12, -0.5 or 1.5e+3, or put quotes around text"
        self._refuse(node, f"{meant}: {advice}")

    def _scalar(self, node: yaml.Node) -> object:
        """Return the value of a scalar node; return the node itself if it is a list or a mapping."""
        if not isinstance(node, yaml.ScalarNode):
            return node
        try:
            scalar: object = self._loader.construct_object(node)
        except (ValueError, LookupError, AttributeError) as error:  # 2026-13-45, 5,000 digits, or !!int ""
            self._refuse(node, f"{node.value[:40]!r} is not a valid {node.tag.rpartition(':')[2]} ({error})")
        return scalar

    def _mapping(self, node: yaml.MappingNode, path: DataPath) -> dict[str, object]:
        data: dict[str, object] = {}
        for key_node, value_node in node.value:
            key = self._scalar(key_node)
            if not isinstance(key, str):
                self._refuse(key_node, "a key must be text (put quotes around numbers and words such as yes, no, on)")
            if key in data:
                self._refuse(key_node, f"the key {key!r} appears twice")
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
