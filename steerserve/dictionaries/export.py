"""Any dictionary as a plain folder in SAELens' layout, so that it can be served, copied and read without its source."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from steerserve.dictionaries.files import refusal
from steerserve.dictionaries.layouts import CONFIG_FILE, REPORT_FILE, WEIGHTS_FILE
from steerserve.dictionaries.saelens import build_sae, read_config
from steerserve.dictionaries.weights import dump_weights

if TYPE_CHECKING:
    from steerserve.dictionaries.layouts import StoredDictionary


def write_folder(stored: StoredDictionary, target: Path) -> None:
    """Write a dictionary that was read into a new folder, whole or not at all, once it has passed its own checks.

    A SAELens file is copied as it is and keeps its sha256; anything else is written in the format of its numbers.

    Raises:
        DictionarySourceError: it is no dictionary that can be served, or its files changed meanwhile.
        FileExistsError: there is something of that name already.
    """
    build_sae(replace(stored, tensors=dict(stored.tensors)), torch.device("cpu"))
    config = json.dumps(_described(stored), indent=2, ensure_ascii=False, allow_nan=False)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        (aside / WEIGHTS_FILE).write_bytes(_data(stored))
        (aside / CONFIG_FILE).write_text(config + "\n", encoding="utf-8")
        if stored.report is not None:
            (aside / REPORT_FILE).write_text(json.dumps(stored.report, indent=2) + "\n", encoding="utf-8")
        aside.chmod(0o755)
        if target.exists():
            raise FileExistsError(target)
        aside.rename(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _data(stored: StoredDictionary) -> bytes:
    if stored.plain is None:
        return dump_weights(stored.tensors)
    with stored.plain.opened(WEIGHTS_FILE) as (file, size):
        data = file.read(size)
    if hashlib.sha256(data).hexdigest() != stored.sha256:
        raise refusal(stored.source, "changed while it was read")
    return data


def _described(stored: StoredDictionary) -> dict[str, Any]:
    """Return the configuration in SAELens' present form, with where it came from."""
    config = read_config(stored.config, stored.source)
    metadata = config["metadata"]
    own = metadata.get("steerserve")
    came_from = {"source": stored.source, "source_sha256": stored.sha256}
    metadata["steerserve"] = {**(own if isinstance(own, dict) else {}), **came_from}
    dtype = str(stored.tensors["W_dec"].dtype).removeprefix("torch.")
    return {**config, "dtype": dtype, "device": "cpu"}
