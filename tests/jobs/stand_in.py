"""A worker whose work is counting: `python stand_in.py STORE JOB_ID`, as the supervisor starts it.

It counts up to the option `steps`, keeps the count in a file as its checkpoint, and at the step `hold_at` waits for the
file `go` beside it, or for a stop request. With `dies` it kills itself at that step; with `fails` it raises an error of
ours, with `breaks` an unexpected one; with `deaf` it ignores stop requests. If the options are those of a training,
it counts to the number of tokens and holds at the step that the seed gives.
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
    from steerserve.core.observer import Observer
    from steerserve.jobs.job import JobSpec


def count(spec: JobSpec, observer: Observer) -> dict[str, Any]:
    options = spec.options
    if "out" in options:
        options = {"folder": options["out"], "steps": options["tokens"], "hold_at": options["seed"]}
    folder = Path(options["folder"])
    folder.mkdir(exist_ok=True)
    if "fails" in options:
        raise ConfigError(options["fails"])
    if "breaks" in options:
        raise ZeroDivisionError(options["breaks"])
    checkpoint = folder / "count"
    first = int(checkpoint.read_text(encoding="ascii")) if checkpoint.is_file() else 0
    with (folder / "starts").open("a", encoding="ascii") as starts:
        starts.write(f"{first}\n")
    with observer.stage("Counting", options["steps"]) as progress:
        for step in range(first + 1, options["steps"] + 1):
            if options.get("dies") == step:
                os.kill(os.getpid(), signal.SIGKILL)
            progress.update(step, {"step": step, "tokens": 10 * step, "dictionaries": {"one": {"l0": float(step)}}})
            checkpoint.write_text(str(step), encoding="ascii")
            while step == options.get("hold_at") and not (folder / "go").exists():
                time.sleep(0.01)
                if observer.should_stop() and not options.get("deaf"):
                    break
            if observer.should_stop() and not options.get("deaf"):
                raise StoppedError("stopped")
        logging.getLogger("steerserve.counting").info("counted")
    return {"dictionaries": [{"id": "one", "source": "path:one", "counted": options["steps"], "from": first}]}


if __name__ == "__main__":
    store, job_id = sys.argv[1:]
    sys.exit(run_worker(Path(store), job_id, {"train": count}, grace_s=0.5, busy_s=0.05))
