"""Files of a HookedTransformer: read from a folder in its own format, or converted from a transformers model.

A folder in its own format has `config.json` (the fields of `HookedTransformerConfig`), safetensors with a state dict in
TransformerLens' names, and a tokenizer. Nothing is ever unpickled. TransformerLens' own checkpoints are pickles;
`save_hooked` writes such a folder from a model whose checkpoint its user trusts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens import loading_from_pretrained as loading
from transformer_lens.utilities import softcap_enabled
from transformer_lens.utilities.architectures import POST_NORM_ARCHITECTURES

from steerserve.core.errors import ModelSourceError
from steerserve.model.fitness import check_fits, check_kind, num_stored
from steerserve.model.names import model_names
from steerserve.model.source import is_hooked_folder
from steerserve.model.weights import eos_ids, load_config, load_weights

if TYPE_CHECKING:
    from collections.abc import Iterator

    from steerserve.model.source import ModelFiles

_NUM_COPIES = 2
"""Number of copies of the weights in memory while a model is loaded."""
_MAX_REASON = 300
_COMPUTED = ("mask", "IGNORE", "rotary_sin", "rotary_cos")
"""Last parts of the state dict's names that a model computes itself."""
_OWN = {"init_weights": False, "n_devices": 1, "tokenizer_name": None, "seed": None, "device": "cpu"}
"""Fields of a configuration that this server sets. A seed would be set for the whole process."""


def load_hooked(
    files: ModelFiles, dtype: torch.dtype, *, process_weights: bool
) -> tuple[HookedTransformer, frozenset[int]]:
    """Return the model on the CPU, and the tokens that end a generation.

    Args:
        files: A folder in HookedTransformer's own format, or a folder of transformers.
        dtype: The number format of the weights.
        process_weights: Whether to fold a transformers model's norms into the weights after them, and to centre the
            weights that write to the stream and to the logits. A folder in its own format is not processed.

    Raises:
        ModelSourceError: TransformerLens does not support the architecture, the files are damaged, or the memory is too
            small.
    """
    check_fits(_NUM_COPIES * num_stored(files.path), torch.device("cpu"), dtype)
    try:
        with _quietly():
            if is_hooked_folder(files.path):
                return _read(files.path, dtype), _named_eos_ids(files.path)
            return _convert(files, dtype, process_weights=process_weights)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, AssertionError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:_MAX_REASON] or type(error).__name__
        message = f"TransformerLens cannot load {files.id} as a HookedTransformer: {reason}"
        raise ModelSourceError(message) from error


def save_hooked(model: HookedTransformer, folder: Path) -> None:
    """Write a folder that `load_hooked` reads back as the same model."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {name: value for name, value in model.cfg.to_dict().items() if name not in _OWN and _is_plain(value)}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    state = {name: value.contiguous().clone() for name, value in model.state_dict().items() if _is_stored(name)}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(folder)


def _read(path: Path, dtype: torch.dtype) -> HookedTransformer:
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    names = {field.name for field in dataclasses.fields(HookedTransformerConfig)}
    fields = {name: value for name, value in config.items() if name in names}
    model = HookedTransformer(HookedTransformerConfig(**fields | _OWN | {"dtype": dtype}))
    state: dict[str, torch.Tensor] = {}
    for file in sorted(path.glob("*.safetensors")):
        state |= load_file(file)
    state = {name: value.to(dtype) for name, value in state.items() if _is_stored(name)}
    loaded = model.load_state_dict(state, strict=False)
    missing = [name for name in loaded.missing_keys if _is_stored(name)]
    for problem, keys in (("they lack", missing), ("the model has no", loaded.unexpected_keys)):
        if keys:
            more = f" and {len(keys) - 1} more" if keys[1:] else ""
            message = (
                f"The weights in {path} do not fit its config.json: {problem} {keys[0]}{more}. "
                "Write both from one model with save_hooked."
            )
            raise ModelSourceError(message)
    return model


def _convert(
    files: ModelFiles, dtype: torch.dtype, *, process_weights: bool
) -> tuple[HookedTransformer, frozenset[int]]:
    """Convert a transformers model, as `HookedTransformer.from_pretrained` does for the names on its list.

    Source: transformer_lens.HookedTransformer.from_pretrained, which refuses local folders.
    """
    check_kind(files, load_config(files))
    hf_model = load_weights(files, torch.float32 if process_weights else dtype)
    with _neutral_path(files.path) as path:
        cfg = _config(files, path, hf_model, fold_ln=process_weights)
        state = loading.get_pretrained_state_dict(str(path), cfg, hf_model, dtype=cfg.dtype)
    ends = eos_ids(hf_model)
    del hf_model
    model = HookedTransformer(cfg, move_to_device=False)
    is_post_norm = cfg.original_architecture in POST_NORM_ARCHITECTURES
    model.load_and_process_state_dict(
        state,
        fold_ln=process_weights and not is_post_norm,
        center_writing_weights=process_weights and not is_post_norm,
        center_unembed=process_weights and not softcap_enabled(cfg.output_logits_soft_cap),
        fold_value_biases=process_weights,
    )
    cfg.dtype = dtype
    return torch.nn.Module.to(model, dtype=dtype), ends


def _config(files: ModelFiles, path: Path, hf_model: Any, *, fold_ln: bool) -> HookedTransformerConfig:  # noqa: ANN401
    """Read the configuration from the files. TransformerLens has those of some architectures by model name only."""
    loaded: dict[str, Any] = {"trust_remote_code": True} if files.trust_remote_code else {}
    aliases = loading.make_model_alias_map()
    names = [str(path), *(aliases[name.lower()] for name in model_names(files) if name.lower() in aliases)]
    refused: NotImplementedError | None = None
    for name in names:
        try:
            cfg = loading.get_pretrained_model_config(
                name,
                hf_cfg=hf_model.config.to_dict(),
                fold_ln=fold_ln,
                device="cpu",
                dtype=hf_model.dtype,
                local_files_only=True,
                **loaded,
            )
        except NotImplementedError as error:
            refused = error
            continue
        cfg.tokenizer_name = None
        return cfg
    message = str(refused)
    raise ValueError(message) from refused


@contextlib.contextmanager
def _neutral_path(path: Path) -> Iterator[Path]:
    """Link a folder's files from a neutral path: TransformerLens takes any path with `llama` in it for a Llama.

    The context length of GPT-2 gets its older name there, which TransformerLens reads.
    """
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    if "n_positions" in config:
        config.setdefault("n_ctx", config["n_positions"])
    with tempfile.TemporaryDirectory(dir="/tmp" if Path("/tmp").is_dir() else None) as folder:  # noqa: S108 it holds links only
        linked = Path(folder)
        for file in path.iterdir():
            (linked / file.name).symlink_to(file.resolve())
        (linked / "config.json").unlink()
        (linked / "config.json").write_text(json.dumps(config), encoding="utf-8")
        yield linked


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Ignore the warning that TransformerLens 4 drops the class; this package requires TransformerLens 3."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def _named_eos_ids(path: Path) -> frozenset[int]:
    try:
        config = json.loads((path / "generation_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return frozenset()  # the tokenizer's end token is used then
    eos = config.get("eos_token_id") if isinstance(config, dict) else None
    return frozenset({eos} if isinstance(eos, int) else eos or ())


def _is_stored(name: str) -> bool:
    return name.rpartition(".")[2] not in _COMPUTED


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, (bool, int, float, str, list))
