"""Progress on stderr: bars if it is a terminal, plain lines if not."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TransferSpeedColumn,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_POLL_S = 0.2


@contextlib.contextmanager
def progress_line(text: str) -> Iterator[None]:
    """Show `text` while a step of unknown length runs."""
    console = Console(stderr=True)
    if not console.is_terminal:
        console.print(text, soft_wrap=True)
        yield
        return
    with console.status(text):
        yield


@contextlib.contextmanager
def stage_bar(text: str, num_stages: int) -> Iterator[Callable[[str], None]]:
    """Show a bar over stages; the caller calls the yielded function with the name of each stage as it begins."""
    console = Console(stderr=True)
    if not console.is_terminal:
        console.print(text, soft_wrap=True)
        yield lambda _: None
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(text, total=num_stages)
        started = iter(range(num_stages + 1))

        def begin(stage: str) -> None:
            progress.update(task, completed=next(started), description=f"{text}: {stage}")

        yield begin


@contextlib.contextmanager
def download_bar(text: str, folder: Path, total_bytes: int) -> Iterator[None]:
    """Show a bar that follows the largest file below `folder`, for a downloader without a bar of its own."""
    console = Console(stderr=True)
    if not console.is_terminal:
        console.print(f"{text} ({total_bytes / 1e6:.0f} MB)", soft_wrap=True)
        yield
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    stop = threading.Event()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(text, total=total_bytes)

        def follow() -> None:
            while not stop.wait(_POLL_S):
                with contextlib.suppress(OSError):
                    done = max((file.stat().st_size for file in folder.rglob("*") if file.is_file()), default=0)
                    progress.update(task, completed=done)

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
            progress.update(task, completed=total_bytes)
        finally:
            stop.set()
            thread.join()
