"""Activations on disk take their room before they are written, or say that there is none."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from steerserve.core.errors import ConfigError
from steerserve.core.observer import StoppedError
from steerserve.text.corpus import load_corpus
from steerserve.text.windows import Windower, batch_windows
from steerserve.training.activations import ActivationReader
from steerserve.training.cache import fill_cache
from tests.tiny import D_MODEL, HOOK_NAME
from tests.training.quiet import Quiet

if TYPE_CHECKING:
    from pathlib import Path

    from steerserve.model.lens import LensModel

TOKENS = 3000
NEEDED = TOKENS * D_MODEL * 2


def reader(lens: LensModel, text_folder: Path) -> ActivationReader:
    windows = Windower(lens.tokenizer, 64).windows(load_corpus([text_folder]).training)
    return ActivationReader(lens, (HOOK_NAME,), batch_windows(windows, lens.tokenizer.special_ids))


def test_its_room_is_taken_before_the_first_row_is_written(
    sink_lens: LensModel, text_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(StoppedError):
        fill_cache(reader(sink_lens, text_folder), tmp_path / "cache", TOKENS, Quiet(stop_in="Reading text"))
    status = (tmp_path / "cache" / f"{HOOK_NAME}.bin").stat()
    assert status.st_size == NEEDED
    assert 512 * status.st_blocks >= NEEDED


def test_a_disk_that_is_full_is_told_with_what_is_needed(
    sink_lens: LensModel, text_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(ConfigError, match=r"0\.00 GB in .*cache.*No space left"):
        fill_cache(reader(sink_lens, text_folder), tmp_path / "cache", TOKENS, Quiet())


def test_where_no_room_can_be_set_aside_the_file_is_made_all_the_same(
    sink_lens: LensModel, text_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    found = fill_cache(reader(sink_lens, text_folder), tmp_path / "cache", TOKENS, Quiet())
    assert len(found.rows[HOOK_NAME]) > 0
    assert (tmp_path / "cache" / f"{HOOK_NAME}.bin").stat().st_size == NEEDED
