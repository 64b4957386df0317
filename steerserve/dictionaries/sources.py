"""Where a dictionary's files come from, and the checks before they are used."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from sae_lens import SAE
from safetensors import SafetensorError, safe_open

from steerserve.core.errors import DictionarySourceError
from steerserve.dictionaries.dictionary import Dictionary
from steerserve.model.download import sha256_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from steerserve.model.lens import LensModel

BUNDLED_DIR = Path(__file__).parent / "bundled"
WEIGHTS_FILE = "sae_weights.safetensors"
CONFIG_FILE = "cfg.json"
REPORT_FILE = "report.json"

_LEAST_NORM = 1e-6

_log = logging.getLogger(__name__)


def load_dictionary(
    dictionary_id: str,
    source: str,
    lens: LensModel,
    *,
    allowed_dirs: Sequence[Path],
    norms: Mapping[str, tuple[float, float]],
) -> Dictionary:
    """Load and check the dictionary at `source` (`bundled:NAME` or `path:DIR`) for this model.

    Args:
        dictionary_id: The short name it is served under.
        source: Where its files are.
        lens: The model it must fit.
        allowed_dirs: `path:` sources must lie within one of these folders.
        norms: Median and mean residual norm at each hook point, for dictionaries that do not record theirs.

    Raises:
        DictionarySourceError: there is none, its files are damaged, or it does not fit the model.
    """
    folder = locate_dictionary(source, allowed_dirs)
    config = _read_json(folder / CONFIG_FILE, source)
    weights = folder / WEIGHTS_FILE
    stored_dtype = _check_weights(weights, source)
    sae = _load_sae(folder, source, lens)
    metadata = sae.cfg.metadata
    hook_name = str(metadata.hook_name or config.get("hook_name") or "")
    _check_fit(dictionary_id, sae, hook_name, lens)
    median, mean = _recorded_norms(metadata.steerserve, norms[hook_name], source)
    sha256 = sha256_of(weights)
    report = _read_json(folder / REPORT_FILE, source) if (folder / REPORT_FILE).is_file() else None
    return Dictionary(
        id=dictionary_id,
        hook_name=hook_name,
        sae=sae,
        sha256=sha256,
        contents=_contents(sha256, sae, median),
        zero_directions=frozenset((sae.W_dec.norm(dim=-1) < _LEAST_NORM).nonzero().flatten().tolist()),
        source=source,
        stored_dtype=stored_dtype,
        is_default=False,
        report=report,
        median_norm=median,
        mean_norm=mean,
    )


def _recorded_norms(recorded: object, measured: tuple[float, float], source: str) -> tuple[float, float]:
    """Return the norms that the dictionary recorded, or the measured ones where it recorded none."""
    if not isinstance(recorded, dict):
        return measured
    norms = [recorded.get(name, default) for name, default in zip(("median_norm", "mean_norm"), measured, strict=True)]
    if not all(isinstance(norm, int | float) and math.isfinite(norm) and norm > 0 for norm in norms):
        message = f"metadata.steerserve of the dictionary source {source!r} must hold positive norms, not {norms}."
        raise DictionarySourceError(message)
    return float(norms[0]), float(norms[1])


def _contents(sha256: str, sae: SAE[Any], median_norm: float) -> str:
    config = {name: value for name, value in sae.cfg.to_dict().items() if name not in {"metadata", "device"}}
    described = json.dumps([sha256, median_norm, config], sort_keys=True, default=str)
    return hashlib.sha256(described.encode()).hexdigest()


def locate_dictionary(source: str, allowed_dirs: Sequence[Path]) -> Path:
    """Return the folder of a source.

    Raises:
        DictionarySourceError: there is no such folder, or it lies outside the allowed ones.
    """
    kind, _, name = source.partition(":")
    if kind == "bundled":
        folder = (BUNDLED_DIR / name).resolve()
        if not folder.is_relative_to(BUNDLED_DIR.resolve()) or not (folder / CONFIG_FILE).is_file():
            known = sorted(str(f.parent.relative_to(BUNDLED_DIR)) for f in BUNDLED_DIR.rglob(CONFIG_FILE))
            message = f"There is no bundled dictionary {name!r}. Bundled: {', '.join(known) or 'none'}."
            raise DictionarySourceError(message)
        return folder
    if kind == "path":
        folder = Path(name).expanduser().resolve()
        if not any(folder.is_relative_to(Path(allowed).expanduser().resolve()) for allowed in allowed_dirs):
            message = (
                f"The dictionary source {source!r} lies outside the configured folders "
                f"({', '.join(str(allowed) for allowed in allowed_dirs) or 'none'}); add its folder to dictionary_dirs."
            )
            raise DictionarySourceError(message)
        if not folder.is_dir():
            message = f"The dictionary source {source!r}: there is no folder {folder}."
            raise DictionarySourceError(message)
        return folder
    message = f"The dictionary source {source!r} must begin with bundled: or path:."
    raise DictionarySourceError(message)


def _read_json(path: Path, source: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        message = f"The dictionary source {source!r} has no {path.name}."
        raise DictionarySourceError(message) from error
    except (OSError, ValueError) as error:
        message = f"{path.name} of the dictionary source {source!r} cannot be read as JSON: {error}"
        raise DictionarySourceError(message) from error
    if not isinstance(found, dict):
        message = f"{path.name} of the dictionary source {source!r} must hold a JSON object."
        raise DictionarySourceError(message)
    return found


def _check_weights(weights: Path, source: str) -> str:
    try:
        with safe_open(weights, framework="pt") as file:
            if "W_dec" not in file.keys():  # noqa: SIM118 safe_open is no mapping
                message = f"The weights of {source!r} have no W_dec, so they are no SAELens dictionary."
                raise DictionarySourceError(message)
            return str(file.get_tensor("W_dec").dtype).removeprefix("torch.")
    except (SafetensorError, OSError) as error:
        message = f"{WEIGHTS_FILE} of the dictionary source {source!r} is missing, cut or damaged: {error}"
        raise DictionarySourceError(message) from error


def _load_sae(folder: Path, source: str, lens: LensModel) -> SAE[Any]:
    try:
        sae = SAE.load_from_disk(folder, device=str(lens.device), dtype="float32")
    except Exception as error:
        # SAELens raises what its parts raise: KeyError on architectures, RuntimeError on shapes, TypeError on configs.
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        message = f"SAELens cannot load the dictionary source {source!r}: {reason}"
        raise DictionarySourceError(message) from error
    sae = sae.to(dtype=torch.float32).eval().requires_grad_(requires_grad=False)
    if not all(bool(torch.isfinite(tensor).all()) for tensor in sae.state_dict().values()):
        message = f"The weights of {source!r} hold values that are not finite."
        raise DictionarySourceError(message)
    return sae


def _check_fit(dictionary_id: str, sae: SAE[Any], hook_name: str, lens: LensModel) -> None:
    if hook_name not in lens.hook_names:
        message = (
            f"The dictionary {dictionary_id!r} reads the hook point {hook_name!r}, which this server does not offer on "
            f"{lens.id}. It offers {lens.hook_names[0]} to {lens.hook_names[-1]}."
        )
        raise DictionarySourceError(message)
    if sae.cfg.d_in != lens.d_model:
        message = (
            f"The dictionary {dictionary_id!r} reads vectors of width {sae.cfg.d_in}, "
            f"and {lens.id} has d_model {lens.d_model}: it was made for another model."
        )
        raise DictionarySourceError(message)
    made_for = str(sae.cfg.metadata.model_name or "")
    if made_for and made_for.rpartition("/")[2].lower() != lens.id.rpartition("/")[2].lower():
        _log.warning("dictionary %s was made for %s and is used on %s", dictionary_id, made_for, lens.id)
