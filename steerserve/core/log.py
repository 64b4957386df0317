"""Logging to stderr, one line an event, uvicorn's messages in the same format."""

from __future__ import annotations

import logging.config

FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


def set_up_logging(level: str = "info") -> None:
    """Send every logger of this process to stderr, from `level` (debug, info, warning or error) up.

    Libraries log from WARNING up, or from `level` if that is debug or error.
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
                # Without a configuration uvicorn adds its own handlers.
                "uvicorn": {"handlers": [], "propagate": True, "level": others},
                # The server itself logs one line for each request.
                "uvicorn.access": {"handlers": [], "propagate": False},
            },
        }
    )
    logging.captureWarnings(capture=True)
