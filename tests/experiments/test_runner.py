"""Experiments run on the tiny model: complete, resumed after any stop with the same result, and refused with a line."""

from __future__ import annotations

import contextlib
import csv
import json
import re
from typing import TYPE_CHECKING, Any, Self

import pytest

from steerserve.client.server_client import AsyncServerClient
from steerserve.core.errors import ConfigError
from steerserve.core.observer import SilentObserver, StoppedError
from steerserve.experiments.experiment import Experiment, parse_experiment
from steerserve.experiments.outputs import write_outputs
from steerserve.experiments.runner import run_experiment
from steerserve.experiments.samples import SAMPLES_FILE, ResultsFolder
from steerserve.runtime import Runtime, build_runtime
from steerserve.server.app import create_app
from tests.tiny import tiny_settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from fastapi import FastAPI

pytestmark = pytest.mark.slow

TEXT = """\
name: little
model: tiny
prompts: [Tell me., {prompt}]
arms:
  - name: baseline
  - {{name: pushed, steering: [{{feature: 3, scale: 30, positions: generated}}]}}
  - {{name: control, control_of: pushed}}
  - {{name: prompted, system: Talk loudly.}}
seeds: 2
n: 2
max_tokens: 6
"""


class Follower(SilentObserver):
    """Follows a run, and stops it after so many comparisons."""

    def __init__(self, num_until_stop: int = 1000) -> None:
        self.done: list[int] = []
        self._left = num_until_stop

    @contextlib.contextmanager
    def stage(self, title: str, total: int) -> Iterator[Self]:
        assert title.startswith("Experiment")
        assert total >= 1
        yield self

    def update(self, done: int, facts: Mapping[str, Any] | None = None) -> None:
        assert facts is None
        self.done.append(done)

    def should_stop(self) -> bool:
        self._left -= 1
        return self._left < 0


@pytest.fixture(scope="module")
def presets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("presets")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, presets: Path) -> Iterator[Runtime]:
    settings = tiny_settings(tmp_path_factory.mktemp("tiny"), engine={"threads": 1})
    with build_runtime(settings.model_copy(update={"presets_dir": presets})) as runtime:
        yield runtime


def experiment_of(text: str = TEXT, prompt: str = "And then") -> Experiment:
    return parse_experiment(text.format(prompt=prompt), file="little.yaml")


async def run(
    runtime: Runtime,
    folder: Path,
    experiment: Experiment,
    until: int = 1000,
    **options: Any,  # noqa: ANN401
) -> list[int]:
    follower, client = Follower(until), AsyncServerClient.inside(create_app(runtime), None)
    try:
        await run_experiment(experiment, client, ResultsFolder(folder), follower, command="x", **options)
    finally:
        await client.close()
    return follower.done


def lines(folder: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (folder / SAMPLES_FILE).read_text().splitlines()]
    for record in records:
        del record["usage"]["prompt_tokens_details"]  # how much of a prompt was shared is not the sample's
    return records


async def test_all_samples_are_made_and_every_arm_draws_the_same_noise(tiny: Runtime, tmp_path: Path) -> None:
    experiment = experiment_of()
    assert await run(tiny, tmp_path, experiment) == [0, 1, 2, 3, 4]
    records = lines(tmp_path)
    assert len(records) == 2 * 2 * 4 * 2
    metrics = records[2]["metrics"]
    assert len(metrics["tokens"]) == len(metrics["features_by_token"]["res0"]["3"]) > 0
    acts = [act for act in metrics["features_by_token"]["res0"]["3"] if act is not None]
    assert sum(acts) / len(acts) == pytest.approx(metrics["features"]["res0"]["3"], abs=1e-4)
    run_file = json.loads((tmp_path / "run.json").read_text())
    assert run_file["experiment"] == experiment.text
    assert run_file["sessions"][0]["command"] == "x"
    assert run_file["sessions"][0]["versions"].keys() >= {"steerserve", "torch", "transformers", "sae_lens"}
    assert len(run_file["dictionaries"][0]["sha256"]) == 64


async def test_arms_differ_by_nothing_that_a_preset_says_of_sampling(
    tiny: Runtime, tmp_path: Path, presets: Path
) -> None:
    sampling = "temperature: 0, top_k: 1, presence_penalty: 2, frequency_penalty: 2, repetition_penalty: 5"
    stops = json.dumps([chr(code) for code in range(ord("!"), ord("Z"))], ensure_ascii=False)[:2000]
    (presets / "set.yaml").write_text(
        f"name: set\nsampling: {{{sampling}, max_tokens: 1, min_p: 1, seed: 5, stop: {stops}}}\n"
    )
    text = TEXT.replace("n: 2\nmax_tokens: 6", "n: 2\nmax_tokens: 40") + "stop: []\n"
    arms = text[text.index("arms:") : text.index("seeds:")]
    await run(
        tiny, tmp_path, experiment_of(text.replace(arms, "arms: [{{name: baseline}}, {{name: set, preset: set}}]\n"))
    )
    found = lines(tmp_path)
    texts = [[one["text"] for one in found if one["arm"] == arm] for arm in ("baseline", "set")]
    assert texts[0] == texts[1]


async def test_a_run_that_was_stopped_anywhere_goes_on_to_the_same_samples(tiny: Runtime, tmp_path: Path) -> None:
    await run(tiny, tmp_path / "whole", experiment_of())
    part = tmp_path / "part"
    with pytest.raises(StoppedError, match="1 of 4 comparisons are kept; run the same command to continue"):
        await run(tiny, part, experiment_of(), until=1)
    file = part / SAMPLES_FILE
    first = file.read_bytes()
    with pytest.raises(StoppedError):
        await run(tiny, part, experiment_of(), until=1)
    second = file.read_bytes()
    # As a kill leaves it: some lines of the second comparison, the last of them cut.
    cut = len(first) + (len(second) - len(first)) // 2
    file.write_bytes(second[:cut])
    assert await run(tiny, part, experiment_of()) == [1, 2, 3, 4]
    assert lines(part) == lines(tmp_path / "whole")
    assert await run(tiny, part, experiment_of()) == [4]
    assert len(json.loads((part / "run.json").read_text())["sessions"]) == 4


async def test_prompts_and_seeds_can_be_added(tiny: Runtime, tmp_path: Path) -> None:
    await run(tiny, tmp_path, experiment_of())
    more = TEXT.replace("prompts: [Tell me.,", "prompts: [New., Tell me.,").replace("seeds: 2", "seeds: [1, 0, 4]")
    assert await run(tiny, tmp_path, experiment_of(more)) == [4, 5, 6, 7, 8, 9]
    fewer = experiment_of(TEXT.replace("seeds: 2", "seeds: 1"))
    assert await run(tiny, tmp_path, fewer) == [2]
    folder = ResultsFolder(tmp_path)
    stored = folder.run()
    assert stored is not None
    assert write_outputs(fewer, folder, stored).num_samples["pushed"] == 4


@pytest.mark.parametrize(
    ("there", "instead", "word"),
    [
        ("scale: 30", "scale: 31", "arms"),
        ("max_tokens: 6", "max_tokens: 7", "max_tokens"),
        ("n: 2", "n: 1", "n differs"),
        ("Talk loudly.", "Talk softly.", "arms"),
        ("name: prompted", "name: other", "arms"),
    ],
)
async def test_samples_of_another_experiment_are_not_mixed_in(
    there: str, instead: str, word: str, tiny: Runtime, tmp_path: Path
) -> None:
    with pytest.raises(StoppedError):
        await run(tiny, tmp_path, experiment_of(), until=1)
    before = (tmp_path / SAMPLES_FILE).read_bytes()
    with pytest.raises(ConfigError, match=f"samples of another experiment: .*{word}.*--replace"):
        await run(tiny, tmp_path, experiment_of(TEXT.replace(there, instead)))
    assert (tmp_path / SAMPLES_FILE).read_bytes() == before


async def test_samples_of_another_version_of_a_preset_are_not_mixed_in(
    tiny: Runtime, tmp_path: Path, presets: Path
) -> None:
    preset = "name: told\nsystem: {}\nedits: [{{feature: 3, scale: {}}}]\n"
    experiment = experiment_of(
        TEXT.replace("name: pushed, steering: [{{feature: 3, ", "name: pushed, steering: [told, {{feature: 4, ")
    )
    (presets / "told.yaml").write_text(preset.format("Speak of hills.", 9))
    with pytest.raises(StoppedError):
        await run(tiny, tmp_path, experiment, until=1)
    for system, scale in (("Speak of bills.", 9), ("Speak of hills.", 8)):  # as many tokens; the same prompt
        (presets / "told.yaml").write_text(preset.format(system, scale))
        with pytest.raises(ConfigError, match="samples of another experiment: arms differs"):
            await run(tiny, tmp_path, experiment)
    (presets / "told.yaml").write_text(preset.format("Speak of hills.", 9) + "sampling: {top_k: 1}\n")
    assert await run(tiny, tmp_path, experiment) == [1, 2, 3, 4]


@pytest.mark.parametrize("name", ["device", "dtype"])
async def test_samples_of_another_device_or_number_format_are_not_mixed_in(
    name: str, tiny: Runtime, tmp_path: Path
) -> None:
    await run(tiny, tmp_path, experiment_of())
    file = tmp_path / "run.json"
    made = json.loads(file.read_text())
    made["setup"][name] = "other"
    file.write_text(json.dumps(made))
    with pytest.raises(ConfigError, match=f"samples of another experiment: {name} differs"):
        await run(tiny, tmp_path, experiment_of())


async def test_weights_are_compared_where_both_are_known(tiny: Runtime, tmp_path: Path) -> None:
    for weights in (None, "a" * 64, None, "a" * 64):
        await run(tiny, tmp_path, experiment_of(), weights=weights)
    with pytest.raises(ConfigError, match="samples of another experiment: weights differs"):
        await run(tiny, tmp_path, experiment_of(), weights="b" * 64)
    assert json.loads((tmp_path / "run.json").read_text())["setup"]["weights"] == "a" * 64


@pytest.mark.parametrize(
    ("there", "instead", "said"),
    [
        ("feature: 3", "feature: 4000", r"little\.yaml:6:\d+: .*0 to 95"),
        ("steering: [{{feature: 3,", "steering: [loud, {{feature: 3,", r"little\.yaml:6:\d+: .*loud"),
        ("steering: [{{feature: 3,", "preset: loud, steering: [{{feature: 3,", r"little\.yaml:6:\d+: .*loud"),
        ("model: tiny", "model: large", r"little\.yaml:2:1: .*'large'"),
        ("max_tokens: 6", "max_tokens: 6000", r"little\.yaml:\d+:\d+: "),
        ("n: 2", "n: 100", r"little\.yaml:10:1: .*400 samples"),
    ],
)
async def test_what_the_server_refuses_is_told_with_the_files_line(
    there: str, instead: str, said: str, tiny: Runtime, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        await run(tiny, tmp_path, experiment_of(TEXT.replace(there, instead)))
    assert not (tmp_path / SAMPLES_FILE).exists()


class Failing:
    """An application before another, which answers some of the comparisons itself."""

    def __init__(self, app: FastAPI, statuses: list[int | None]) -> None:
        self._app = app
        self._statuses = statuses
        self.num_asked = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401 as ASGI has them
        status = None
        if scope["path"] == "/v1/compare":
            self.num_asked += 1
            status = self._statuses.pop(0) if self._statuses else None
        if status is None:
            await self._app(scope, receive, send)
            return
        headers = [(b"content-type", b"application/json"), (b"retry-after", b"0.1")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b'{"error": {"message": "Too much."}}'})


async def test_a_busy_server_is_asked_again_and_a_failing_one_ends_the_run_which_can_go_on(
    tiny: Runtime, tmp_path: Path
) -> None:
    failing = Failing(create_app(tiny), [429, None, 503, 409, None, None, 500])
    client, experiment = AsyncServerClient.inside(failing, None, max_attempts=8), experiment_of()
    with pytest.raises(ConfigError, match=r"Too much\. 2 of 4 comparisons are kept; run the same command to continue"):
        await run_experiment(experiment, client, ResultsFolder(tmp_path), Follower(), command="x")
    await run_experiment(experiment, client, ResultsFolder(tmp_path), Follower(), command="x")
    await client.close()
    assert failing.num_asked == 7 + 1 + 2
    assert len(lines(tmp_path)) == 32


async def test_samples_are_replaced_only_when_new_ones_can_be_made(tiny: Runtime, tmp_path: Path) -> None:
    await run(tiny, tmp_path, experiment_of())
    before = (tmp_path / SAMPLES_FILE).read_bytes()
    broken = experiment_of(TEXT.replace("feature: 3", "feature: 4000"))
    with pytest.raises(ConfigError, match="0 to 95"):
        await run(tiny, tmp_path, broken, replace=True)
    client = AsyncServerClient("http://127.0.0.1:9/v1", None)
    with pytest.raises(ConfigError, match="No server answers at"):
        await run_experiment(experiment_of(), client, ResultsFolder(tmp_path), Follower(), command="x", replace=True)
    await client.close()
    assert (tmp_path / SAMPLES_FILE).read_bytes() == before
    assert ResultsFolder(tmp_path).run() is not None
    other = experiment_of(TEXT.replace("scale: 30", "scale: 31"))
    assert await run(tiny, tmp_path, other, replace=True) == [0, 1, 2, 3, 4]
    assert len(lines(tmp_path)) == 32


async def test_a_full_disk_ends_the_run_with_a_sentence(
    tiny: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / SAMPLES_FILE).symlink_to("/dev/full")
    monkeypatch.setattr(ResultsFolder, "repaired", lambda _self, _sizes: {})  # it would read /dev/full without an end
    with pytest.raises(ConfigError, match=f"^{re.escape(str(tmp_path))} cannot be written: No space left on device"):
        await run(tiny, tmp_path, experiment_of())


async def test_a_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    client = AsyncServerClient("http://127.0.0.1:9/v1", None)
    with pytest.raises(ConfigError, match=r"No server answers at http://127\.0\.0\.1:9 "):
        await run_experiment(experiment_of(), client, ResultsFolder(tmp_path), Follower(), command="x")
    await client.close()


@pytest.mark.parametrize(("there", "instead"), [("n: 2", "n: 1"), ("name: prompted", "name: other")])
async def test_a_report_never_drops_samples_of_another_experiment(
    there: str, instead: str, tiny: Runtime, tmp_path: Path
) -> None:
    await run(tiny, tmp_path, experiment_of())
    before, folder = (tmp_path / SAMPLES_FILE).read_bytes(), ResultsFolder(tmp_path)
    stored = folder.run()
    assert stored is not None
    with pytest.raises(ConfigError, match="samples of another experiment"):
        write_outputs(experiment_of(TEXT.replace(there, instead)), folder, stored)
    assert (tmp_path / SAMPLES_FILE).read_bytes() == before


async def test_tables_pair_samples_with_the_first_arms(tiny: Runtime, tmp_path: Path) -> None:
    experiment, folder = experiment_of(), ResultsFolder(tmp_path)
    await run(tiny, tmp_path, experiment)
    stored = folder.run()
    assert stored is not None
    figures = write_outputs(experiment, folder, stored)
    with (tmp_path / "samples.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 32
    places = {(row["prompt"], row["seed"], row["index"], row["arm"]): float(row["surprise"]) for row in rows}
    pairs = [value - places[*place[:3], "baseline"] for place, value in places.items() if place[3] == "pushed"]
    difference = figures.cell("pushed", "surprise").difference
    assert difference is not None
    assert difference.mean == pytest.approx(sum(pairs) / len(pairs))
    assert (difference.num_values, difference.num_prompts, difference.method) == (8, 2, None)
    assert figures.cell("baseline", "surprise").difference is None
    assert figures.cell("prompted", "kl").difference is not None
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [arm["name"] for arm in summary["arms"]] == ["baseline", "pushed", "control", "prompted"]
    assert {"kl", "res0/3"} <= summary["arms"][0]["metrics"].keys()
    with (tmp_path / "summary.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 4 * len(figures.metrics)
