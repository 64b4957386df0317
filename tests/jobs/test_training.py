"""Real training in real workers: whatever happens to them, the weights are those of an undisturbed run."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from safetensors.torch import load_file

from steerserve.core.config import JobSettings
from steerserve.jobs.job import JobSpec
from steerserve.jobs.supervisor import Supervisor
from steerserve.training.options import DictionaryOptions, TrainOptions
from tests.jobs.conftest import end_of_job, until, wait_for, write_model_and_text
from tests.jobs.test_supervisor import worker_pid
from tests.tiny import HOOK_NAME

if TYPE_CHECKING:
    from steerserve.jobs.job import Job


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the tiny model and some text."""
    folder = tmp_path_factory.mktemp("training")
    write_model_and_text(folder, num_documents=40, num_words=30)
    return folder


def spec(files: Path, out: Path, **values: Any) -> JobSpec:  # noqa: ANN401 any option
    options = TrainOptions(
        out=out,
        corpus=(str(files / "text"),),
        dictionaries=(DictionaryOptions("one", hook=HOOK_NAME, d_sae=64, k=4),),
        model=str(files / "tiny"),
        tokens=600,
        batch_size=16,
        context_size=32,
        device="cpu",
        heldout_tokens=64,
        **{"epochs": 100, "checkpoint_every": 50, **values},
    )
    return JobSpec(claims=("one",), options=options.to_json(), cache_dir=files / "cache", threads=1)


def num_training(supervisor: Supervisor, job: Job) -> int:
    """Count the workers that came as far as a training step."""
    assert not supervisor.find(job.id).has_ended, "it was over before it could be disturbed"
    has_trained = [False]
    for event in supervisor.events(job.id, 0):
        if event.data.get("state") == "running":
            has_trained.append(False)
        elif "step" in event.data:
            has_trained[-1] = True
    return sum(has_trained)


@pytest.mark.slow
def test_a_job_that_is_killed_and_stopped_ends_with_the_weights_of_an_undisturbed_one(
    supervisor: Supervisor, files: Path, tmp_path: Path
) -> None:
    undisturbed = supervisor.submit("train", "one", spec(files, tmp_path / "undisturbed"))
    result = wait_for(supervisor, undisturbed, "done", "failed").result
    assert result is not None, supervisor.find(undisturbed.id).error
    (trained,) = result["dictionaries"]
    assert (trained["id"], trained["source"]) == ("one", f"path:{tmp_path / 'undisturbed'}")
    assert trained["report"]["d_sae"] == 64
    progress = [event.data for event in supervisor.events(undisturbed.id, 0) if event.type == "progress"]
    figures = next(facts for facts in reversed(progress) if "step" in facts)
    assert figures["step"] == figures["num_steps"]
    assert {"tokens", "losses", "explained_variance", "l0", "dead_fraction", "resampled"} <= figures.keys()

    disturbed = supervisor.submit("train", "one", spec(files, tmp_path / "disturbed"))
    until(lambda: num_training(supervisor, disturbed) == 1, lambda: end_of_job(supervisor, disturbed.id))
    os.kill(worker_pid(supervisor, disturbed), signal.SIGKILL)
    until(lambda: num_training(supervisor, disturbed) == 2, lambda: end_of_job(supervisor, disturbed.id))
    supervisor.stop()
    second = Supervisor(tmp_path, JobSettings(), lambda *_: None)
    second.start()
    try:
        done = wait_for(second, disturbed, "done", "failed")
    finally:
        second.stop()
    assert done.state == "done", done.error
    one, other = (load_file(tmp_path / name / "sae_weights.safetensors") for name in ("undisturbed", "disturbed"))
    assert one.keys() == other.keys()
    assert all((one[name] == other[name]).all() for name in one)
