"""Log lines have one form, uvicorn's too."""

from __future__ import annotations

import logging

import pytest

from steerserve.core.log import set_up_logging


def test_each_event_is_one_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("info")
    logging.getLogger("steerserve.engine").info("slot %s", 3)
    logging.getLogger("steerserve.engine").debug("not this")
    logging.getLogger("uvicorn.error").warning("from uvicorn")
    logging.getLogger("uvicorn.error").info("nor this")
    logging.getLogger("uvicorn.access").info("nor this")
    logging.getLogger("somelibrary").info("nor this")
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == [
        "INFO    steerserve.engine: slot 3",
        "WARNING uvicorn.error: from uvicorn",
    ]


def test_debug_lets_libraries_speak(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("debug")
    logging.getLogger("somelibrary").debug("detail")
    assert "somelibrary: detail" in capsys.readouterr().err
