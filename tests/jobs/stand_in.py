"""A worker whose work is counting: `python stand_in.py STORE JOB_ID`, as the supervisor starts it.

It counts up to `spec["steps"]`, keeps the count in a file as its checkpoint, and at the step `hold_at` waits for the
file `go` beside it (or for being told to stop). With `dies` it kills itself at each step that it reaches; with `fails`
it raises an error of ours, with `breaks` one that nobody expected, with `deaf` it never asks whether to stop. Where the
spec is that of a real training, it counts to the number of tokens and holds at the step that the seed says.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerserve.core.errors import ConfigError
from steerserve.core.observer import StoppedError
from steerserve.jobs.worker import run_worker

if TYPE_CHECKING:
    from collections.abc import Mapping

    from steerserve.core.observer import Observer


def count(spec: Mapping[str, Any], observer: Observer) -> dict[str, Any]:
    options = spec.get("options")
    if options is not None:
        spec = {"folder": options["out"], "steps": options["tokens"], "hold_at": options["seed"]}
    folder = Path(spec["folder"])
    folder.mkdir(exist_ok=True)
    if "fails" in spec:
        raise ConfigError(spec["fails"])
    if "breaks" in spec:
        raise ZeroDivisionError(spec["breaks"])
    checkpoint = folder / "count"
    first = int(checkpoint.read_text(encoding="ascii")) if checkpoint.is_file() else 0
    with (folder / "starts").open("a", encoding="ascii") as starts:
        starts.write(f"{first}\n")
    with observer.stage("Counting", spec["steps"]) as progress:
        for step in range(first + 1, spec["steps"] + 1):
            if spec.get("dies") == step:
                os.kill(os.getpid(), signal.SIGKILL)
            progress.update(step, {"step": step, "tokens": 10 * step, "dictionaries": {"one": {"l0": float(step)}}})
            checkpoint.write_text(str(step), encoding="ascii")
            while step == spec.get("hold_at") and not (folder / "go").exists():
                time.sleep(0.01)
                if observer.should_stop() and not spec.get("deaf"):
                    break
            if observer.should_stop() and not spec.get("deaf"):
                raise StoppedError("stopped")
        logging.getLogger("steerserve.counting").info("counted")
    return {"dictionaries": [{"id": "one", "source": "path:one", "counted": spec["steps"], "from": first}]}


if __name__ == "__main__":
    store, job_id = sys.argv[1:]
    sys.exit(run_worker(Path(store), job_id, {"train": count}, grace_s=0.5, busy_s=0.05))
