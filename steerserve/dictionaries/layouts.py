"""Reads the files of a dictionary: three layouts, all converted to SAELens' configuration and tensors.

The names of the files determine the layout. The values are checked in `saelens.py`.
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

    from steerserve.dictionaries.conversions import ConfigAndTensors
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
    """A dictionary as its source holds it, not checked yet."""

    source: str
    config: dict[str, Any]
    """Configuration as some version of SAELens writes it."""
    tensors: dict[str, Tensor]
    """Tensors by SAELens' names, in the dtype they are stored in. `build_sae` takes them out one by one."""
    sha256: str
    """SHA-256 of the weights file."""
    report: dict[str, Any] | None = None
    saelens_folder: SourceFolder | None = None
    """Folder of the files, if they have SAELens' layout."""


@dataclass(frozen=True, slots=True)
class FileLayout:
    """The two files of a dictionary and the function that reads them."""

    config: str
    weights: str
    read: Callable[[SourceFolder, dict[str, Any], dict[str, Tensor]], ConfigAndTensors]


def find_layout(names: Collection[str], source: str) -> FileLayout:
    """Return the layout of a folder with files of these names.

    Raises:
        DictionarySourceError: the files have no known layout, or the weights are pickled.
    """
    complete = next((layout for layout in LAYOUTS if {layout.config, layout.weights} <= set(names)), None)
    if complete is not None:
        return complete
    if half := next((layout for layout in LAYOUTS if layout.weights in names), None):
        raise refusal(source, f"has {half.weights} but no {half.config}")
    if "ae.pt" in names:
        reason = (
            f"has its weights in ae.pt, a pickle, which is never loaded. If you trust the file, convert it: {_CONVERT}"
        )
        raise refusal(source, reason)
    if pickle := next((name for name in sorted(names) if name.endswith(_PICKLES)), None):
        raise refusal(source, f"has its weights in {pickle}, a pickle, which is never loaded")
    pairs = ", or ".join(f"{layout.config} with {layout.weights}" for layout in LAYOUTS)
    raise refusal(source, f"holds no dictionary: it needs {pairs}")


def read_folder(folder: SourceFolder, limit: SizeLimit) -> StoredDictionary:
    """Read the dictionary in a folder.

    Raises:
        DictionarySourceError: the folder has no known layout, or its files are damaged or too large.
    """
    names = folder.names()
    layout = find_layout(names, folder.source)
    config = folder.read_json(layout.config)
    report = folder.read_json(REPORT_FILE) if REPORT_FILE in names else None
    weights = read_weights(folder, layout.weights, limit)
    try:
        config, tensors = layout.read(folder, config, weights.tensors)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise refusal(folder.source, f"cannot be read from {layout.config} and {layout.weights}: {reason}") from error
    saelens_folder = folder if layout.weights == WEIGHTS_FILE else None
    return StoredDictionary(folder.source, config, tensors, weights.sha256, report, saelens_folder)


def _read_saelens(_folder: SourceFolder, config: dict[str, Any], tensors: dict[str, Tensor]) -> ConfigAndTensors:
    # Old versions wrote a scaling factor of ones. Source: SAELens' read_sae_components_from_disk.
    factor = tensors.get("scaling_factor")
    if factor is not None and bool((factor == 1).all()):
        del tensors["scaling_factor"]
    return config, tensors


LAYOUTS = (
    FileLayout(CONFIG_FILE, WEIGHTS_FILE, _read_saelens),
    FileLayout(CONFIG_FILE, "sae.safetensors", read_sparsify),
    FileLayout(OUTER_CONFIG_FILE, "ae.safetensors", read_dictionary_learning),
)
"""The layouts of SAELens, EleutherAI's sparsify and dictionary_learning."""
