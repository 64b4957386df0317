"""Run pip so that it downloads and does nothing else. A separate script, which does not import steerserve.

`pip download` builds a source archive to learn its metadata, which runs the package's own code. Here pip cannot start
another program: when it tries, the archive that it has just fetched is kept, and pip ends.

Usage: python -P pip_guard.py FOLDER [pip's arguments...]; pip keeps its temporary files in FOLDER.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

_STARTS = {"os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "os.system", "pty.spawn", "subprocess.Popen"}
_ARCHIVES = (".zip", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


def main() -> None:
    """Run pip, with a hook that keeps it from starting programs."""
    folder = Path(sys.argv[1])

    def refuse(event: str, _: tuple[object, ...]) -> None:
        if event not in _STARTS:
            return
        archives = [file for file in folder.glob("*/*") if file.is_file() and file.name.endswith(_ARCHIVES)]
        for archive in archives:
            archive.replace(folder / archive.name)
        if archives:
            os._exit(0)
        message = "pip may not start a program while it fetches a source of text."
        raise PermissionError(message)

    sys.addaudithook(refuse)
    sys.argv = ["pip", *sys.argv[2:]]
    runpy.run_module("pip", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
