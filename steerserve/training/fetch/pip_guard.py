"""Run pip so that it downloads and nothing more: a script of its own, which knows nothing of steerserve.

`pip download` builds a source archive to learn its metadata, which runs the package's own code. Here no other program
can be started: the archive that pip has just fetched is kept instead, and pip ends.

Usage: python -P pip_guard.py FOLDER [pip's words...]; pip keeps its temporary files in FOLDER.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

_STARTS = {"os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "os.system", "pty.spawn", "subprocess.Popen"}
_ARCHIVES = (".zip", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


def main() -> None:
    """Watch for programs being started, then be pip."""
    folder = Path(sys.argv[1])

    def refuse(event: str, _: tuple[object, ...]) -> None:
        if event not in _STARTS:
            return
        found = [file for file in folder.glob("*/*") if file.is_file() and file.name.endswith(_ARCHIVES)]
        for file in found:
            file.replace(folder / file.name)
        if found:
            os._exit(0)
        message = "No program may be started while a source of text is fetched."
        raise PermissionError(message)

    sys.addaudithook(refuse)
    sys.argv = ["pip", *sys.argv[2:]]
    runpy.run_module("pip", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
