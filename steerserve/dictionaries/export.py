"""Writes any dictionary as a folder in SAELens' layout, which can be served and copied without the source."""

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
    """Check a stored dictionary and write it into a new folder, completely or not at all.

    A weights file of SAELens is copied and keeps its sha256; other weights are written in the dtype they are stored in.

    Raises:
        DictionarySourceError: the dictionary cannot be served, or its files have changed since they were read.
        FileExistsError: `target` exists already.
    """
    build_sae(replace(stored, tensors=dict(stored.tensors)), torch.device("cpu"))
    config = json.dumps(_described(stored), indent=2, ensure_ascii=False, allow_nan=False)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        (partial / WEIGHTS_FILE).write_bytes(_data(stored))
        (partial / CONFIG_FILE).write_text(config + "\n", encoding="utf-8")
        if stored.report is not None:
            (partial / REPORT_FILE).write_text(json.dumps(stored.report, indent=2) + "\n", encoding="utf-8")
        partial.chmod(0o755)
        if target.exists():
            raise FileExistsError(target)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _data(stored: StoredDictionary) -> bytes:
    if stored.saelens_folder is None:
        return dump_weights(stored.tensors)
    with stored.saelens_folder.opened(WEIGHTS_FILE) as (file, size):
        data = file.read(size)
    if hashlib.sha256(data).hexdigest() != stored.sha256:
        raise refusal(stored.source, "changed while it was read; try again")
    return data


def _described(stored: StoredDictionary) -> dict[str, Any]:
    """Return the configuration in SAELens' present form, with the source in its metadata."""
    config = read_config(stored.config, stored.source)
    metadata = config["metadata"]
    own = metadata.get("steerserve")
    origin = {"source": stored.source, "source_sha256": stored.sha256}
    metadata["steerserve"] = {**(own if isinstance(own, dict) else {}), **origin}
    dtype = str(stored.tensors["W_dec"].dtype).removeprefix("torch.")
    return {**config, "dtype": dtype, "device": "cpu"}
