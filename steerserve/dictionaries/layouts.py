"""What the files of a dictionary mean: three layouts, all read into SAELens' configuration and tensors.

A layout is chosen by the names of the files. What the values are is checked elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from steerserve.dictionaries.conversions import OUTER_CONFIG_FILE, read_dictionary_learning, read_sparsify
from steerserve.dictionaries.files import refusal
from steerserve.dictionaries.weights import read_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from torch import Tensor

    from steerserve.dictionaries.conversions import Parts
    from steerserve.dictionaries.files import SourceFolder
    from steerserve.dictionaries.weights import SizeLimit

CONFIG_FILE = "cfg.json"
WEIGHTS_FILE = "sae_weights.safetensors"
REPORT_FILE = "report.json"
_PICKLES = (".pt", ".pth", ".bin", ".pkl", ".ckpt")
_CONVERT = (
    'python -c "import torch, safetensors.torch as s; s.save_file({k: v.contiguous() for k, v in '
    "torch.load('ae.pt', weights_only=True).items()}, 'ae.safetensors')\""
)


@dataclass(frozen=True, slots=True)
class StoredDictionary:
    """What a source holds, not checked yet."""

    source: str
    config: dict[str, Any]
    """As SAELens writes it, in one of its versions."""
    tensors: dict[str, Tensor]
    """By SAELens' names, as they are stored. Taken out one by one when the dictionary is built."""
    sha256: str
    report: dict[str, Any] | None = None
    plain: SourceFolder | None = None
    """Where its files are, if they are SAELens' own."""


@dataclass(frozen=True, slots=True)
class FileLayout:
    """Two files and how to read them."""

    config: str
    weights: str
    read: Callable[[SourceFolder, dict[str, Any], dict[str, Tensor]], Parts]


def find_layout(names: Collection[str], source: str) -> FileLayout:
    """Return the layout of a folder with files of these names.

    Raises:
        DictionarySourceError: there is none, or its weights are pickled.
    """
    complete = next((found for found in LAYOUTS if {found.config, found.weights} <= set(names)), None)
    if complete is not None:
        return complete
    if half := next((found for found in LAYOUTS if found.weights in names), None):
        raise refusal(source, f"has {half.weights} and no {half.config}")
    if "ae.pt" in names:
        reason = (
            f"has its weights in ae.pt, a pickle, which is never loaded. If you trust it, convert it there: {_CONVERT}"
        )
        raise refusal(source, reason)
    if pickle := next((name for name in sorted(names) if name.endswith(_PICKLES)), None):
        raise refusal(source, f"has its weights in {pickle}, a pickle, which is never loaded")
    known = ", or ".join(f"{found.config} with {found.weights}" for found in LAYOUTS)
    raise refusal(source, f"holds no dictionary: it needs {known}")


def read_folder(folder: SourceFolder, limit: SizeLimit) -> StoredDictionary:
    """Read the dictionary in a folder.

    Raises:
        DictionarySourceError: it has no known layout, or its files are damaged or too large.
    """
    names = folder.names()
    layout = find_layout(names, folder.source)
    config = folder.read_json(layout.config)
    report = folder.read_json(REPORT_FILE) if REPORT_FILE in names else None
    weights = read_weights(folder, layout.weights, limit)
    try:
        config, tensors = layout.read(folder, config, weights.tensors)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
        reason = f"has no {error}" if isinstance(error, KeyError) else f"cannot be understood: {error}"
        raise refusal(folder.source, f"has a {layout.config} or {layout.weights} that {reason}") from error
    plain = folder if layout.weights == WEIGHTS_FILE else None
    return StoredDictionary(folder.source, config, tensors, weights.sha256, report, plain)


def _read_saelens(_folder: SourceFolder, config: dict[str, Any], tensors: dict[str, Tensor]) -> Parts:
    # Written for a while by old versions. Source: SAELens' read_sae_components_from_disk.
    factor = tensors.get("scaling_factor")
    if factor is not None and bool((factor == 1).all()):
        del tensors["scaling_factor"]
    return config, tensors


LAYOUTS = (
    FileLayout(CONFIG_FILE, WEIGHTS_FILE, _read_saelens),
    FileLayout(CONFIG_FILE, "sae.safetensors", read_sparsify),
    FileLayout(OUTER_CONFIG_FILE, "ae.safetensors", read_dictionary_learning),
)
"""SAELens', EleutherAI's sparsify, dictionary_learning."""
