"""Looks pinned versions up among known vulnerabilities with pip-audit: `python -m tools.audit constraints.txt`.

pip-audit asks an index for its JSON pages; an index without them knows no package, and pip-audit then passes without
having looked at anything. Here that is a warning, and an error if `AUDIT_STRICT` is set.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

STRICT_VARIABLE = "AUDIT_STRICT"
TIMEOUT_S = 300
_OPTIONS = ("--progress-spinner", "off", "--format", "json", "--no-deps", "--disable-pip")


def main(file: str) -> int:
    """Print what pip-audit finds; returns the exit code."""
    command = [sys.executable, "-m", "pip_audit", *_OPTIONS, "--requirement", file]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)  # noqa: S603
        packages = json.loads(done.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, json.JSONDecodeError):
        return unaudited("The service for known vulnerabilities cannot be reached.")
    return report(packages)


def report(packages: list[dict[str, Any]]) -> int:
    """Print each vulnerability and what was not looked up; returns the exit code."""
    vulnerabilities = [(package, entry) for package in packages for entry in package.get("vulns", [])]
    for package, entry in vulnerabilities:
        mended = ", ".join(entry["fix_versions"]) or "no version yet"
        print(f"{package['name']} {package['version']}: {entry['id']}, mended in {mended}")
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    print(f"{len(packages) - len(skipped)} of {len(packages)} packages audited, {len(vulnerabilities)} vulnerabilities")
    if vulnerabilities:
        return 1
    return unaudited(f"Not audited: {', '.join(skipped)}.") if skipped else 0


def unaudited(reason: str) -> int:
    """Warn of what could not be looked up, or refuse it if the environment says so."""
    is_strict = bool(os.environ.get(STRICT_VARIABLE))
    print(f"{'error' if is_strict else 'warning'}: {reason[:200]}", file=sys.stderr)
    return int(is_strict)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
