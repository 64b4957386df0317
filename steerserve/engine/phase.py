"""Where a request stands on its way through the engine."""

import enum


class Phase(enum.Enum):
    """Where a sequence stands."""

    WAITING = "waiting"
    PREFILL = "prefill"
    DECODE = "decode"
    FINISHED = "finished"
