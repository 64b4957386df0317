"""Kept comparisons: found again, dropped when there are too many, and there after any crash."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from steerserve.compare.store import ComparisonStore
from steerserve.core.errors import NotFoundError, UnavailableError

if TYPE_CHECKING:
    from pathlib import Path


def ids(store: ComparisonStore) -> list[str]:
    return [one["id"] for one in store.page(limit=100, offset=0).summaries]


def test_what_was_kept_is_found_and_listed_newest_first(tmp_path: Path) -> None:
    store = ComparisonStore(tmp_path / "new")
    assert store.page(limit=5, offset=0).summaries == []
    assert not (tmp_path / "new").exists()
    for name in ("a", "b", "c"):
        assert store.add(name, {"id": name}, f'{{"text": "{name}é"}}')
    assert store.find("b") == '{"text": "bé"}'
    page = store.page(limit=2, offset=0)
    assert ([one["id"] for one in page.summaries], page.has_more) == (["c", "b"], True)
    page = store.page(limit=2, offset=2)
    assert ([one["id"] for one in page.summaries], page.has_more) == (["a"], False)
    store.delete("b")
    assert ids(ComparisonStore(tmp_path / "new")) == ["c", "a"]
    for call in (store.find, store.delete):
        with pytest.raises(NotFoundError) as caught:
            call("b")
        assert caught.value.code == "comparison_not_found"


def test_the_oldest_go_when_there_are_too_many(tmp_path: Path) -> None:
    store = ComparisonStore(tmp_path, max_kept=3)
    for number in range(5):
        store.add(str(number), {"id": str(number)}, "{}")
    assert ids(store) == ["4", "3", "2"]


def test_the_oldest_go_when_they_are_too_large_and_what_never_fits_is_not_kept(tmp_path: Path) -> None:
    store = ComparisonStore(tmp_path, max_bytes=2500)
    for number in range(4):
        assert store.add(str(number), {"id": str(number)}, "x" * 1000)
    assert ids(store) == ["3", "2"]
    assert not store.add("large", {"id": "large"}, "x" * 3000)
    assert ids(store) == ["3", "2"]


def test_many_threads_may_write_at_once(tmp_path: Path) -> None:
    store = ComparisonStore(tmp_path)
    threads = [
        threading.Thread(target=store.add, args=(str(number), {"id": str(number)}, "{}")) for number in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ids(store), key=int) == [str(number) for number in range(12)]


def test_a_killed_process_loses_nothing_that_was_kept(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from steerserve.compare.store import ComparisonStore\n"
        "store = ComparisonStore(Path(sys.argv[1]))\n"
        "for number in range(10**6):\n"
        "    store.add(str(number), {'id': str(number)}, '{}'); print(number, flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = [int(process.stdout.readline()) for _ in range(5)]
        os.kill(process.pid, signal.SIGKILL)
    store = ComparisonStore(tmp_path)
    assert {str(number) for number in told} <= set(ids(store))
    store.add("after", {"id": "after"}, "{}")
    assert ids(store)[0] == "after"


@pytest.mark.parametrize("content", [b"no database at all" * 100, None])
def test_a_file_that_cannot_be_used_is_told(tmp_path: Path, content: bytes | None) -> None:
    store = ComparisonStore(tmp_path)
    if content is None:
        with sqlite3.connect(store.path) as connection:
            connection.execute("PRAGMA user_version = 99")
        connection.close()
    else:
        store.path.write_bytes(content)
    with pytest.raises(UnavailableError) as caught:
        store.page(limit=1, offset=0)
    assert str(store.path) in caught.value.message
