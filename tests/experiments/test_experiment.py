"""The file of an experiment: what it comes to, and every way of getting it wrong, with its line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from steerserve.core.errors import ConfigError
from steerserve.experiments.experiment import load_experiment, parse_experiment
from steerserve.experiments.samples import planned
from steerserve.experiments.schema import SCHEMA_FILE, schema_text
from tests.experiments.broken import GOOD, broken

ROOT = Path(__file__).parents[2]
BROKEN = broken()


def test_a_good_file_is_what_is_sent() -> None:
    experiment = parse_experiment(GOOD, file="little.yaml")
    assert experiment.seeds == [3, 5]
    assert experiment.prompts[0] == [{"role": "user", "content": "Tell me about it."}]
    assert experiment.prompts[1][1] == {"role": "user", "content": "Well"}
    assert experiment.arms == [
        {"name": "baseline"},
        {
            "name": "pushed",
            "steering": {
                "edits": [{"feature": 3, "scale": 9.0}, {"feature": 4, "scale": 2.0, "positions": "generated"}]
            },
        },
        {"name": "control", "control_of": "pushed"},
        {"name": "prompted", "system": "Talk loudly."},
        {"name": "mixed", "steering": {"edits": [{"feature": 5, "scale": 1.0}], "presets": ["loud", "soft"]}},
    ]
    assert experiment.sampling == {
        "temperature": 0.5,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "stop": [],
    }


@pytest.mark.parametrize(("stop", "sent"), [("Q:", ["Q:"]), ("[Q:, 'A:']", ["Q:", "A:"]), ("[]", [])])
def test_a_stop_is_one_text_or_some(stop: str, sent: list[str]) -> None:
    text = GOOD.replace("temperature: 0.5", f"stop: {stop}\npresence_penalty: -1").replace("Q:,", "'Q:',")
    sampling = parse_experiment(text.replace("stop: Q:", "stop: 'Q:'"), file="x").sampling
    assert (sampling["stop"], sampling["presence_penalty"]) == (sent, -1)


def test_a_number_of_seeds_counts_from_zero() -> None:
    assert parse_experiment(GOOD.replace("[3, 5]", "3"), file="x").seeds == [0, 1, 2]


def test_there_are_over_sixty_broken_files() -> None:
    assert len(BROKEN) > 60


@pytest.mark.parametrize(("text", "line", "word"), BROKEN, ids=range(len(BROKEN)))
def test_what_is_wrong_is_said_with_its_line(text: str, line: int, word: str | None) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_experiment(text, file="little.yaml")
    message = caught.value.message
    found = re.match(r"little\.yaml:(\d+):\d+: ", message)
    assert found is not None, message
    assert int(found[1]) == line, message
    assert word is None or word in message, message
    assert message.endswith((".", "?")), message


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="There is no file"):
        load_experiment(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_experiment(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"name: a\ndescription: \xe9\n")
    with pytest.raises(ConfigError, match=r"latin\.yaml:2:14: .*UTF-8"):
        load_experiment(tmp_path / "latin.yaml")


@pytest.mark.parametrize(
    ("param", "line"),
    [
        ("arms[1].steering.edits[1].feature", 14),
        ("arms[4].steering.edits[0].feature", 19),
        ("arms[4].steering.presets[0]", 19),
        ("arms[3].system", 18),
        ("messages[0].content", 5),
        ("max_tokens", 22),
        (None, 1),
    ],
)
def test_what_a_server_refuses_is_said_with_its_line(param: str | None, line: int) -> None:
    error = parse_experiment(GOOD, file="little.yaml").refusal("No such thing.", param)
    assert re.match(rf"little\.yaml:{line}:\d+: No such thing\.$", error.message), error.message


def test_it_is_refused_on_another_model() -> None:
    experiment = parse_experiment(GOOD, file="little.yaml")
    experiment.check_model("tiny")
    with pytest.raises(ConfigError, match=r"little\.yaml:4:1: .*'tiny', and 'large' is served"):
        experiment.check_model("large")


def test_samples_are_named_by_prompt_and_seed_alone() -> None:
    keys = [one.key for one in planned(parse_experiment(GOOD, file="x"))]
    assert len(set(keys)) == 4
    other = GOOD.replace("  - Tell me about it.\n", "  - New.\n  - Tell me about it.\n").replace("[3, 5]", "[5, 3]")
    assert set(keys) < {one.key for one in planned(parse_experiment(other, file="x"))}


def test_the_schema_in_the_package_is_that_of_the_code() -> None:
    assert SCHEMA_FILE.read_text(encoding="utf-8") == schema_text()
    assert json.loads(schema_text())["title"] == "steerserve experiment"


@pytest.mark.parametrize("file", sorted((ROOT / "experiments").glob("*.yaml")), ids=lambda file: file.name)
def test_the_experiments_of_the_checkout_can_be_read(file: Path) -> None:
    experiment = load_experiment(file)
    assert experiment.name == file.stem
    schema = re.match(r"# yaml-language-server: \$schema=(\S+)\n", experiment.text)
    assert schema is not None
    assert (file.parent / schema[1]).resolve() == SCHEMA_FILE
