"""docs/http.md names everything that there is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import steerserve
from steerserve.core import errors
from steerserve.core.literals import JOB_STATES, JobEventType
from steerserve.wire.generation import GenerationFields
from steerserve.wire.jobs import InterpretRequest, JobObject, TrainRequest
from steerserve.wire.unsupported import CHAT, COMPLETIONS
from tests.server.asking import client_of

if TYPE_CHECKING:
    from fastapi import FastAPI

PACKAGE = Path(steerserve.__file__).parent
PAGE_FILE = Path(__file__).parents[2] / "docs" / "http.md"
PAGE = PAGE_FILE.read_text()
NAMES = set(re.findall(r"[A-Za-z0-9_]+", " ".join(re.findall(r"`([^`]+)`", PAGE))))
OPENAIS_OWN = {
    *("model", "steering", "temperature", "top_p", "presence_penalty", "frequency_penalty", "logit_bias"),
    *("seed", "n", "stop", "stream", "stream_options", "user"),
}

OF_BASES = {"not_found", "conflict"}
"""Classes that are raised with a code of the case."""


def test_every_refused_field_is_documented() -> None:
    assert {*CHAT, *COMPLETIONS} <= NAMES


def test_every_field_beyond_openais_is_documented() -> None:
    assert set(GenerationFields.model_fields) - OPENAIS_OWN <= NAMES


def test_every_error_code_is_documented() -> None:
    own = {one.default_code for one in vars(errors).values() if isinstance(one, type) and hasattr(one, "default_code")}
    given = {code for file in PACKAGE.rglob("*.py") for code in re.findall(r'\bcode="(\w+)"', file.read_text("utf-8"))}
    (table,) = re.findall(r"^## Errors\n(.*?)^## ", PAGE, re.MULTILINE | re.DOTALL)
    documented = set(re.findall(r"`(\w+)`", table))
    assert (own | given) - {None, *OF_BASES} <= documented


def test_every_route_is_documented(app: FastAPI) -> None:
    for path, operations in app.openapi()["paths"].items():
        for method in operations:
            assert f"`{method.upper()} {path}`" in PAGE or f"{method.upper()} {path}" in PAGE


def test_every_field_of_a_training_request_and_of_a_job_is_documented() -> None:
    page = PAGE_FILE.with_name("jobs.md").read_text(encoding="utf-8")
    rows = set(re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`[^|]+) \|", page, re.MULTILINE))))
    assert {*TrainRequest.model_fields, *InterpretRequest.model_fields} <= rows
    assert {*JOB_STATES, *get_args(JobEventType)} <= rows
    (example,) = re.findall(r"^```json\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert JobObject.model_validate_json(example).state == "running"


async def test_every_metric_is_documented(app: FastAPI) -> None:
    text = (await client_of(app).get("/metrics")).text
    metrics = set(re.findall(r"^# TYPE steerserve_(\w+) (?:gauge|counter|histogram)$", text, re.MULTILINE))
    documented = {name.removesuffix("_total") for name in NAMES}
    assert {name.removesuffix("_total") for name in metrics if not name.endswith("_created")} <= documented
