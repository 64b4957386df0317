"""Files of a HookedTransformer: read from a folder of its own layout, or made from a transformers model.

A folder of its own holds `config.json` (the fields of `HookedTransformerConfig`), safetensors with a state dict in
TransformerLens' names, and a tokenizer. Nothing is ever unpickled: TransformerLens' own checkpoints are pickles, and
`save_hooked` is what writes such a folder from one that its user trusts.
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
"""Of the weights, that are in memory while a model is made from its files."""
_MAX_REASON = 300
_COMPUTED = ("mask", "IGNORE", "rotary_sin", "rotary_cos")
"""Of a state dict, what a model computes itself."""
_OWN = {"init_weights": False, "n_devices": 1, "tokenizer_name": None, "seed": None, "device": "cpu"}
"""Fields of a configuration that are this server's to say; a seed would be set for the whole process."""


def load_hooked(
    files: ModelFiles, dtype: torch.dtype, *, process_weights: bool
) -> tuple[HookedTransformer, frozenset[int]]:
    """Return the model on the CPU, and the tokens that end a generation.

    Args:
        files: A folder of its own layout, or one of transformers.
        dtype: The number format of the weights.
        process_weights: Whether a transformers model's norms are folded into the weights behind them, and what writes
            to the stream or to the logits is centred. A folder of its own layout is taken as it is.

    Raises:
        ModelSourceError: TransformerLens does not know the architecture, the files are broken, or memory does not
            suffice.
    """
    check_fits(_NUM_COPIES * num_stored(files.path), torch.device("cpu"), dtype)
    try:
        with _quietly():
            if is_hooked_folder(files.path):
                return _read(files.path, dtype), _named_eos_ids(files.path)
            return _convert(files, dtype, process_weights=process_weights)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, AssertionError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:_MAX_REASON] or type(error).__name__
        message = f"TransformerLens cannot make a HookedTransformer of {files.id}: {reason}"
        raise ModelSourceError(message) from error


def save_hooked(model: HookedTransformer, folder: Path) -> None:
    """Write a folder from which `load_hooked` reads the same model."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {name: value for name, value in model.cfg.to_dict().items() if name not in _OWN and _is_plain(value)}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    state = {name: value.contiguous().clone() for name, value in model.state_dict().items() if _is_stored(name)}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(folder)


def _read(path: Path, dtype: torch.dtype) -> HookedTransformer:
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    known = {field.name for field in dataclasses.fields(HookedTransformerConfig)}
    fields = {name: value for name, value in config.items() if name in known}
    model = HookedTransformer(HookedTransformerConfig(**fields | _OWN | {"dtype": dtype}))
    state: dict[str, torch.Tensor] = {}
    for file in sorted(path.glob("*.safetensors")):
        state |= load_file(file)
    state = {name: value.to(dtype) for name, value in state.items() if _is_stored(name)}
    loaded = model.load_state_dict(state, strict=False)
    wrong = {"lacks": [name for name in loaded.missing_keys if _is_stored(name)], "has": loaded.unexpected_keys}
    for verb, names in wrong.items():
        if names:
            more = f" and {len(names) - 1} more" if names[1:] else ""
            message = (
                f"The weights in {path} do not fit its config.json: the file {verb} {names[0]}{more}, the model does "
                f"{'not' if verb == 'has' else 'have it'}. Write both from one model with save_hooked."
            )
            raise ModelSourceError(message)
    return model


def _convert(
    files: ModelFiles, dtype: torch.dtype, *, process_weights: bool
) -> tuple[HookedTransformer, frozenset[int]]:
    """Make the model from a transformers model, as `HookedTransformer.from_pretrained` does for names it knows.

    Source: transformer_lens.HookedTransformer.from_pretrained, whose list of names local folders are not on.
    """
    check_kind(files, load_config(files))
    hf_model = load_weights(files, torch.float32 if process_weights else dtype)
    with _plainly_named(files.path) as path:
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
    """Read the configuration from the files; that of some architectures TransformerLens knows by name alone."""
    loaded: dict[str, Any] = {"trust_remote_code": True} if files.trust_remote_code else {}
    known = loading.make_model_alias_map()
    names = [str(path), *(known[name.lower()] for name in model_names(files) if name.lower() in known)]
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
def _plainly_named(path: Path) -> Iterator[Path]:
    """Give a folder a path that names no family of models: TransformerLens takes `llama` anywhere in one for Llama.

    GPT-2's context gets its older name there, under which TransformerLens looks for it.
    """
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    if "n_positions" in config:
        config.setdefault("n_ctx", config["n_positions"])
    with tempfile.TemporaryDirectory(dir="/tmp" if Path("/tmp").is_dir() else None) as folder:  # noqa: S108 links
        linked = Path(folder)
        for file in path.iterdir():
            (linked / file.name).symlink_to(file.resolve())
        (linked / "config.json").unlink()
        (linked / "config.json").write_text(json.dumps(config), encoding="utf-8")
        yield linked


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Leave out that the class will go with TransformerLens 4, which this package does not take."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def _named_eos_ids(path: Path) -> frozenset[int]:
    try:
        config = json.loads((path / "generation_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return frozenset()  # the tokenizer's, then
    eos = config.get("eos_token_id") if isinstance(config, dict) else None
    return frozenset({eos} if isinstance(eos, int) else eos or ())


def _is_stored(name: str) -> bool:
    return name.rpartition(".")[2] not in _COMPUTED


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, (bool, int, float, str, list))
