"""Take the pictures that show the product at work: `python -m tools.docs.screens` writes docs/pictures/watch.svg.

It starts a server with the default model, lets `steerserve watch` draw a steered answer, and saves what a terminal of
100 columns shows.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI

from steerserve.client.served import served_model
from steerserve.client.server_client import ServerClient
from steerserve.commands.watch_stream import describe_feature, watch_tokens
from steerserve.commands.watch_view import WatchView

_FILE = Path(__file__).parents[2] / "docs" / "pictures" / "watch.svg"
_FEATURE = 3857
_PROMPT = "What did you do today?"
_STEERING = [{"feature": _FEATURE, "scale": 1.0, "unit": "dose"}]
_WIDTH = 100


def main() -> None:
    """Draw and save the picture."""
    command = [sys.executable, "-m", "steerserve", "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) as server:  # noqa: S603 our own
        try:
            if server.stdout is None:
                return
            url = next(match[0] for line in server.stdout if (match := re.search(r"http://\S+", line)))
            _FILE.write_text(_drawn(url), encoding="utf-8")
        finally:
            server.terminate()


def _drawn(url: str) -> str:
    with ServerClient(url, None) as client:
        name = served_model(client.get("/v1/models"), url)
        info = describe_feature(client, "res17", _FEATURE)
        body = {
            "model": name,
            "messages": [{"role": "user", "content": _PROMPT}],
            "features": {"top": 8, "watch": [_FEATURE], "dictionaries": ["res17"]},
            "steering": _STEERING,
            "max_tokens": 72,
            "temperature": 0,
        }
        view = WatchView(_FEATURE, info, title=f"{name}, res17: {_FEATURE} {info.label or ''}")
        for token in watch_tokens(client, body, "res17"):
            view.add(token)
    console = Console(record=True, width=_WIDTH, file=open(os.devnull, "w"), force_terminal=True)  # noqa: PTH123, SIM115
    console.print(view)
    drawn = console.export_svg(theme=MONOKAI, title=f'steerserve watch "{_PROMPT}" --feature {_FEATURE}')
    # Fonts from a network would make the picture depend on one.
    return re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.DOTALL).replace("Fira Code, monospace", "monospace")


if __name__ == "__main__":
    main()
