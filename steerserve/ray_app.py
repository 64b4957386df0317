"""The same server as a Ray Serve deployment: `serve run steerserve.ray_app:application config=steerserve.yaml`.

Each replica is a whole server with its own model; Ray distributes the requests among them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ray import serve

from steerserve.core.process import limit_spinning

if TYPE_CHECKING:
    from ray.serve import Application


def application(args: dict[str, str]) -> Application:
    """Build the deployment; Ray passes `key=value` arguments, of which `config` names a YAML file of settings.

    Raises:
        StartupError: the settings, the model or a dictionary cannot be used (when a replica starts).
    """
    config = args.get("config")

    def build_app() -> object:
        limit_spinning(os.environ)
        from steerserve.core.settings_sources import load_settings  # noqa: PLC0415 torch is loaded in the replica, after the line above
        from steerserve.runtime import build_runtime  # noqa: PLC0415
        from steerserve.server.app import create_app  # noqa: PLC0415

        settings = load_settings(Path(config) if config else None, environ=os.environ, flags=[])
        runtime = build_runtime(settings)
        runtime.start()
        return create_app(runtime)

    replica = serve.deployment(serve.ingress(build_app)(), name="steerserve")
    bound: Application = replica.bind()
    return bound
