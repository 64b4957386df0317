"""Loads a dictionary from its source for the served model: reads, builds and checks it."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from steerserve.dictionaries.dictionary import Dictionary
from steerserve.dictionaries.model_fit import check_model_fit, recorded_norms
from steerserve.dictionaries.saelens import build_sae
from steerserve.dictionaries.sources import fetch_source, read_fetched
from steerserve.dictionaries.weights import SizeLimit

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from sae_lens import SAE

    from steerserve.model.lens import LensModel

_LEAST_NORM = 1e-6


@dataclass(frozen=True, slots=True)
class DictionaryLoader:
    """Loads dictionaries for one model. Any thread but an event loop's: it reads, fetches and computes."""

    lens: LensModel
    model_names: tuple[str, ...]
    """The names of the model."""
    norms: Mapping[str, tuple[float, float]]
    """Median and mean norm at each hook point that can be edited, for dictionaries that record none."""
    allowed_dirs: tuple[Path, ...]
    """Folders that `path:` sources must lie within."""
    max_bytes: int
    """Bytes of the largest dictionary that is loaded, in float32."""
    allocating: threading.Lock = field(default_factory=threading.Lock, compare=False, repr=False)
    """Held from checking the free memory until it is taken: two dictionaries may fit alone but not together."""

    def load(self, dictionary_id: str, source: str, *, force: bool = False) -> Dictionary:
        """Load and check the dictionary at `source`, to be served as `dictionary_id`.

        Args:
            dictionary_id: The short name that edits use.
            source: The source, such as `bundled:MODEL/NAME`.
            force: Accept a dictionary that was trained on a model of another name.

        Raises:
            DictionarySourceError: the source holds no dictionary, its files are damaged, or it does not fit the model.
        """
        limit = SizeLimit(self.max_bytes, self.lens.device)
        folder = fetch_source(source, self.allowed_dirs, limit)
        with self.allocating:
            stored = read_fetched(folder, source, limit)
            dtype = str(stored.tensors["W_dec"].dtype) if "W_dec" in stored.tensors else ""
            sae = build_sae(stored, self.lens.device)
        fit = check_model_fit(sae, source, self.lens, self.model_names, force=force)
        median, mean = recorded_norms(sae, self.norms[fit.hook_name], source)
        return Dictionary(
            id=dictionary_id,
            hook_name=fit.hook_name,
            sae=sae,
            sha256=stored.sha256,
            contents=_contents(stored.sha256, sae, median, fit.hook_in),
            zero_directions=frozenset((sae.W_dec.norm(dim=-1) < _LEAST_NORM).nonzero().flatten().tolist()),
            source=source,
            stored_dtype=dtype.removeprefix("torch."),
            is_default=False,
            report=stored.report,
            median_norm=median,
            mean_norm=mean,
            hook_in=fit.hook_in,
            warnings=tuple(f"The dictionary {dictionary_id!r} {doubt}." for doubt in fit.doubts),
        )


def _contents(sha256: str, sae: SAE[Any], median_norm: float, hook_in: str | None) -> str:
    config = {name: value for name, value in sae.cfg.to_dict().items() if name not in {"metadata", "device"}}
    hooks = [] if hook_in is None else [hook_in]
    described = json.dumps([sha256, median_norm, config, *hooks], sort_keys=True, default=str)
    return hashlib.sha256(described.encode()).hexdigest()
