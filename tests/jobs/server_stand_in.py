"""A server with one counting job, for tests that kill it: `python server_stand_in.py FOLDER SPEC`."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from steerserve.core.config import JobSettings
from steerserve.jobs.job import JobSpec
from steerserve.jobs.supervisor import Supervisor
from tests.jobs.conftest import stand_in_command

if __name__ == "__main__":
    folder, spec = sys.argv[1:]
    supervisor = Supervisor(Path(folder), JobSettings(), lambda *_: None, command=stand_in_command)
    supervisor.start()
    sys.stdout.write(supervisor.submit("train", "one", JobSpec.from_json(json.loads(spec))).id + "\n")
    sys.stdout.flush()
    time.sleep(600)
