"""Reads dictionaries of SAELens' registry with SAELens' own loaders; loaders that unpickle are refused."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
from typing import TYPE_CHECKING

import sae_lens
from sae_lens import SAE
from sae_lens.loading.pretrained_sae_loaders import get_conversion_loader_name, load_sae_config_from_huggingface
from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

from steerserve.core.progress import progress_line
from steerserve.dictionaries.files import refusal
from steerserve.dictionaries.hub import hub_refusals
from steerserve.dictionaries.layouts import StoredDictionary
from steerserve.dictionaries.saelens import read_config
from steerserve.dictionaries.weights import dump_weights

if TYPE_CHECKING:
    from collections.abc import Iterable

    from steerserve.dictionaries.weights import SizeLimit

SAFE_LOADERS = frozenset(
    {
        "sae_lens",
        "gemma_2",
        "gemma_3",
        "gemma_2_transcoder",
        "llama_scope",
        "llama_scope_r1_distill",
        "mntss_clt_layer_transcoder",
        "mwhanna_transcoder",
        "sparsify",
        "temporal",
    }
)
"""SAELens' loaders that read safetensors or plain arrays; the others call torch.load."""
_ACROSS_LAYERS = "mntss_clt_layer_transcoder"
"""Loader of one layer of a cross-layer transcoder, whose features write at every later layer. SAELens sums up what they
write, for reading activations and not for decoding (as its own warning says)."""
_FLOAT32_BYTES = 4


def read_release(name: str, source: str, limit: SizeLimit) -> StoredDictionary:
    """Fetch and load `RELEASE/SAE_ID` as SAELens does, with decoder rows of norm 1 if the norms can be folded.

    Raises:
        DictionarySourceError: the registry has no such SAE, its weights are pickled, or it cannot be fetched.
    """
    release, _, sae_id = name.partition("/")
    repo = _find_repo(release, sae_id, source)
    loader = get_conversion_loader_name(release)
    if loader == _ACROSS_LAYERS:
        reason = "is one layer of a cross-layer transcoder, whose features write at many hook points: not supported"
        raise refusal(source, reason)
    if loader not in SAFE_LOADERS:
        reason = (
            f"has its weights in pickles (SAELens' loader {loader}), which are never loaded. If you trust them, save "
            "the SAE with SAELens (SAE.from_pretrained, then save_model) and give its folder as path:FOLDER"
        )
        raise refusal(source, reason)
    with hub_refusals(source, repo), progress_line(f"Fetching {source}"):
        try:
            # The form is the present one already, but unmarked: read as an older form it would lose its metadata.
            present = {**load_sae_config_from_huggingface(release, sae_id), "sae_lens_version": sae_lens.__version__}
            config = read_config(present, source)
            num_values = (config["d_in"] + config.get("d_out", config["d_in"])) * config["d_sae"]
            limit.check(source, num_values, 2 * _FLOAT32_BYTES * num_values)
            sae = SAE.from_pretrained(release, sae_id, device="cpu", dtype="float32")
        except (KeyError, TypeError, ValueError, RecursionError, RuntimeError) as error:
            reason = next(iter(str(error).splitlines()), "")[:200] or type(error).__name__
            raise refusal(source, f"cannot be loaded by SAELens: {reason}") from error
    with contextlib.suppress(NotImplementedError):  # the norms decide which features are active
        sae.fold_W_dec_norm()
    described = sae.cfg.to_dict()
    state = sae.state_dict()
    sae.process_state_dict_for_saving(state)
    # Copied, since the tensors may be views of a mapped file.
    tensors = {name: tensor.detach().clone() for name, tensor in state.items()}
    del sae, state
    return StoredDictionary(source, described, tensors, hashlib.sha256(dump_weights(tensors)).hexdigest())


def _find_repo(release: str, sae_id: str, source: str) -> str:
    releases = get_pretrained_saes_directory()
    if release not in releases:
        raise refusal(source, f"does not exist: SAELens knows no release {release!r}{_nearest(release, releases)}")
    sae_ids = releases[release].saes_map
    if sae_id not in sae_ids:
        hint = f"{_nearest(sae_id, sae_ids)}; it has, for example, {next(iter(sae_ids))!r}"
        reason = f"does not exist: the release has no SAE {sae_id!r}{hint}"
        raise refusal(source, reason)
    repo: str = releases[release].repo_id
    return repo


def _nearest(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
