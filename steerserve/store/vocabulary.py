"""The tokens that occur in a feature store, numbered: small numbers take few bytes in the details of features."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable, Mapping


class Vocabulary:
    """Numbers tokens while features are written, frequent tokens first."""

    def __init__(self, connection: sqlite3.Connection, token_bytes: Callable[[int], bytes]) -> None:
        """Read the tokens that the store has; `token_bytes` returns the bytes of a token id."""
        self._connection = connection
        self._token_bytes = token_bytes
        rows = connection.execute("SELECT number, token_id, bytes FROM tokens").fetchall()
        self.number_of = {token_id: number for number, token_id, _ in rows}
        self.bytes_of: dict[int, bytes] = {token_id: content for _, token_id, content in rows}

    def add(self, token_ids: Iterable[int]) -> None:
        """Number those of `token_ids` that have no number yet, the most frequent first."""
        counts = Counter(token_ids)
        for token_id, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
            if token_id not in self.number_of:
                number = self.number_of[token_id] = len(self.number_of)
                content = self.bytes_of[token_id] = self._token_bytes(token_id)
                self._connection.execute("INSERT INTO tokens VALUES (?, ?, ?)", (number, token_id, content))

    def text(self, token_ids: Iterable[int]) -> str:
        """Return the text of tokens that have a number."""
        return b"".join(self.bytes_of[token_id] for token_id in token_ids).decode("utf-8", errors="replace")


def tokens_of(connection: sqlite3.Connection, numbers: Iterable[int]) -> tuple[Mapping[int, int], Mapping[int, bytes]]:
    """Return the ids of numbered tokens by number, and their bytes by id."""
    query = "SELECT number, token_id, bytes FROM tokens JOIN json_each(?) ON number = value"
    rows = connection.execute(query, (json.dumps(sorted(numbers)),)).fetchall()
    return {number: token_id for number, token_id, _ in rows}, {token_id: content for _, token_id, content in rows}
