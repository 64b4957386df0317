"""The command knows its options without loading torch, and refuses what cannot be trained."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from steerserve.commands.train import train_command
from steerserve.core.errors import ConfigError


def test_importing_the_command_loads_no_torch() -> None:
    code = "import sys, steerserve.commands.train; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_unknown_architecture_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="jumprelu, gated, matryoshka_batchtopk"):
        train_command("a", [str(tmp_path)], architecture="relu")
