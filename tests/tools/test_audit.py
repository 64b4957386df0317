"""The audit tells packages with vulnerabilities from packages that could not be looked up."""

from __future__ import annotations

from typing import Any

import pytest

from tools.audit import STRICT_VARIABLE, report

CLEAN: dict[str, Any] = {"name": "clean", "version": "1", "vulns": []}
BROKEN: dict[str, Any] = {"name": "broken", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.1", "3"]}]}
UNKNOWN: dict[str, Any] = {"name": "unknown", "skip_reason": "not found"}


def test_a_vulnerability_fails_and_names_the_version_that_mends_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert report([CLEAN, BROKEN, UNKNOWN]) == 1
    assert "broken 2: PYSEC-1, mended in 2.1, 3" in capsys.readouterr().out


@pytest.mark.parametrize(("strict", "code"), [("", 0), ("1", 1)])
def test_packages_that_no_service_knows_are_a_warning_unless_strict(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], strict: str, code: int
) -> None:
    monkeypatch.setenv(STRICT_VARIABLE, strict)
    assert report([CLEAN, UNKNOWN]) == code
    assert "unknown" in capsys.readouterr().err


def test_packages_without_vulnerabilities_pass(capsys: pytest.CaptureFixture[str]) -> None:
    assert report([CLEAN]) == 0
    assert "1 of 1 packages audited, 0 vulnerabilities" in capsys.readouterr().out
