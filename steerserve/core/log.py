"""One line of log for one event, on stderr; uvicorn's own messages in the same form."""

from __future__ import annotations

import logging.config

FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


def set_up_logging(level: str = "info") -> None:
    """Send every logger of this process to stderr, from `level` (debug, info, warning or error) up.

    Libraries speak from WARNING up, unless `level` is debug.
    """
    ours = level.upper()
    others = ours if ours in {"DEBUG", "ERROR"} else "WARNING"
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"line": {"format": FORMAT}},
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
            "root": {"handlers": ["stderr"], "level": others},
            "loggers": {
                "steerserve": {"level": ours},
                # uvicorn brings handlers of its own when it is given no configuration; folded in here.
                "uvicorn": {"handlers": [], "propagate": True, "level": others},
                # One line for each request is logged by the server itself.
                "uvicorn.access": {"handlers": [], "propagate": False},
            },
        }
    )
    logging.captureWarnings(capture=True)
