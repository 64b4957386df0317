"""Interpreting in real workers: whatever happens to them, the store is that of an undisturbed run."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from steerserve.core.config import JobSettings
from steerserve.interpret.options import InterpretedSource, InterpretOptions
from steerserve.interpret.tally import Tally
from steerserve.jobs.job import JobSpec
from steerserve.jobs.needs import TALLY_BYTES
from steerserve.jobs.supervisor import Supervisor
from steerserve.store.store import FeatureStore
from tests.jobs.conftest import end_of_job, until, wait_for, write_model_and_text
from tests.jobs.test_supervisor import worker_pid
from tests.tiny import tiny_sae_folder

if TYPE_CHECKING:
    from steerserve.jobs.job import Job
    from steerserve.store.records import FeatureRecord


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("interpreting")
    write_model_and_text(folder, num_documents=600, num_words=60)
    return folder


def spec(files: Path, out: Path) -> JobSpec:
    folder = tiny_sae_folder(out / "one", d_sae=400)
    options = InterpretOptions(
        dictionaries=(InterpretedSource("one", f"path:{folder}"),),
        corpus=(str(files / "text"),),
        dictionary_dirs=(out,),
        allowed_dirs=(out,),
        max_dictionary_bytes=1 << 30,
        model=str(files / "tiny"),
        tokens=100_000,
        context_size=32,
        device="cpu",
        calibrate=False,
    )
    return JobSpec(claims=("one",), options=options.to_json(), cache_dir=files / "cache", threads=1)


def has_read(supervisor: Supervisor, job: Job) -> bool:
    """Tell whether the worker of now has read some text."""
    assert not supervisor.find(job.id).has_ended, "it was over before it could be disturbed"
    reads = False
    for event in supervisor.events(job.id, 0):
        if event.data.get("state") == "running":
            reads = False
        elif event.data.get("stage") == "Reading text" and event.data["done"] > 0:
            reads = True
    return reads


def features(out: Path) -> list[FeatureRecord]:
    store = FeatureStore.open(out / "one" / "features.sqlite3")
    features = [store.feature(number) for number in store.feature_numbers()]
    records = [feature.record for feature in features if feature is not None and feature.record is not None]
    return [replace(record, labels=tuple(replace(label, created=0.0) for label in record.labels)) for record in records]


@pytest.mark.slow
def test_a_job_that_is_killed_and_stopped_ends_with_the_store_of_an_undisturbed_one(
    supervisor: Supervisor, files: Path, tmp_path: Path
) -> None:
    undisturbed = supervisor.submit("interpret", "one", spec(files, tmp_path / "undisturbed"))
    result = wait_for(supervisor, undisturbed, "done", "failed").result
    assert result is not None, supervisor.find(undisturbed.id).error
    assert result["dictionaries"][0]["num_features"] == 400

    disturbed = supervisor.submit("interpret", "one", spec(files, tmp_path / "disturbed"))
    until(lambda: has_read(supervisor, disturbed), lambda: end_of_job(supervisor, disturbed.id))
    os.kill(worker_pid(supervisor, disturbed), signal.SIGKILL)
    until(lambda: has_read(supervisor, disturbed), lambda: end_of_job(supervisor, disturbed.id))
    supervisor.stop()
    second = Supervisor(tmp_path, JobSettings(), lambda *_: None)
    second.start()
    try:
        done = wait_for(second, disturbed, "done", "failed")
    finally:
        second.stop()
    assert done.state == "done", done.error
    assert features(tmp_path / "disturbed") == features(tmp_path / "undisturbed")


def test_what_is_kept_of_a_feature_is_no_more_than_what_room_is_made_for() -> None:
    import torch

    tally = Tally(64, 50_000, torch.device("cpu"))
    tally.peak_tokens.add(torch.arange(64 * 128) // 128, torch.arange(64 * 128) % 128)
    assert sum(tensor.nbytes for tensor in tally.tensors().values()) / 64 < TALLY_BYTES
