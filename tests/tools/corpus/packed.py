"""Archives and package tools made up for tests: nothing here reaches a network."""

from __future__ import annotations

import io
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path

_NPM = """
import os, pathlib, shutil, sys
pathlib.Path(os.environ["SAID"]).open("a").write("npm " + " ".join(sys.argv[1:]) + "\\n")
name = sys.argv[2].rpartition("@")[0].strip("@").replace("/", "-")
archive = pathlib.Path(os.environ["INDEX"]) / f"{name}.tgz"
if not archive.exists():
    sys.exit(f"npm error code E404\\nnpm error 404 Not Found - {sys.argv[2]}\\nnpm error A complete log: x")
shutil.copy(archive, sys.argv[sys.argv.index("--pack-destination") + 1])
"""
_APT_GET = """
import os, pathlib, shutil, sys
pathlib.Path(os.environ["SAID"]).open("a").write("apt-get " + " ".join(sys.argv[1:]) + "\\n")
archive = pathlib.Path(os.environ["INDEX"]) / f"{sys.argv[-1]}.deb"
if not archive.exists():
    sys.exit(f"E: Unable to locate package {sys.argv[-1]}")
shutil.copy(archive, f"{sys.argv[-1]}_1%3a2.5-1_all.deb")
"""
_DPKG_DEB = """
import sys
sys.stdout.buffer.write(open(sys.argv[2], "rb").read())
"""
_PIP = """
import os, pathlib, shutil, subprocess, sys
pathlib.Path(os.environ["SAID"]).open("a").write("pip " + " ".join(sys.argv[1:]) + "\\n")
name, _, version = sys.argv[-1].partition("==")
index, out = pathlib.Path(os.environ["INDEX"]), sys.argv[sys.argv.index("--dest") + 1]
if (index / f"{name}.whl").exists():
    shutil.copy(index / f"{name}.whl", out)
elif (index / f"{name}.zip").exists():
    unpacked = pathlib.Path(os.environ["TMPDIR"]) / "pip-unpack-1"
    unpacked.mkdir()
    shutil.copy(index / f"{name}.zip", unpacked)
    subprocess.run([sys.executable, "-c", f"open({os.environ['RAN']!r}, 'w')"], check=True)
    sys.exit("built it")
else:
    sys.exit(f"ERROR: No matching distribution found for {name}")
"""


def pack_tar(path: Path, files: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def fake_tools(folder: Path) -> dict[str, str]:
    """Write stand-ins for npm, apt-get, dpkg-deb and pip; return the environment in which they are found.

    They give out what lies in `folder/index`, and write each call to `folder/said`. pip starts a program, as it does to
    build a source archive, which would leave `folder/ran` behind.
    """
    bin_dir, library = folder / "bin", folder / "library" / "pip"
    for made in (bin_dir, library, folder / "index"):
        made.mkdir(parents=True)
    for name, script in (("npm", _NPM), ("apt-get", _APT_GET), ("dpkg-deb", _DPKG_DEB)):
        (bin_dir / name).write_text(f"#!{sys.executable}\n{script}", encoding="utf-8")
        (bin_dir / name).chmod(0o755)
    (library / "__init__.py").touch()
    (library / "__main__.py").write_text(_PIP, encoding="utf-8")
    return {
        "PATH": str(bin_dir),
        "PYTHONPATH": str(library.parent),
        "INDEX": str(folder / "index"),
        "SAID": str(folder / "said"),
        "RAN": str(folder / "ran"),
    }
