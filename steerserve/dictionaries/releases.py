"""Dictionaries of SAELens' registry, through SAELens' own loaders; those that would unpickle are refused first."""

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
"""Those of SAELens' loaders that read safetensors or plain arrays; the others call torch.load."""
_ACROSS_LAYERS = "mntss_clt_layer_transcoder"
"""Reads one layer of a cross-layer transcoder: its features write at every later layer, and SAELens adds up what they
write there, for reading activations and not for decoding (so its own warning)."""
_FLOAT32_BYTES = 4


def read_release(name: str, source: str, limit: SizeLimit) -> StoredDictionary:
    """Fetch and load `RELEASE/SAE_ID` as SAELens does, with decoder rows of length one where it can fold them.

    Raises:
        DictionarySourceError: there is none, its weights are pickled, or it cannot be fetched.
    """
    release, _, sae_id = name.partition("/")
    repo = _find_repo(release, sae_id, source)
    loader = get_conversion_loader_name(release)
    if loader == _ACROSS_LAYERS:
        reason = "is one layer of a cross-layer transcoder, whose features write at many hook points: not supported"
        raise refusal(source, reason)
    if loader not in SAFE_LOADERS:
        reason = (
            f"has its weights in pickles (SAELens' loader {loader}), which are never loaded. If you trust it, save it "
            "with SAELens elsewhere (SAE.from_pretrained, then save_model) and use it with path:"
        )
        raise refusal(source, reason)
    with hub_refusals(source, repo), progress_line(f"Fetching {source}"):
        try:
            # In the present form already, without saying so: read as an older one it would lose its metadata.
            present = {**load_sae_config_from_huggingface(release, sae_id), "sae_lens_version": sae_lens.__version__}
            config = read_config(present, source)
            num_values = (config["d_in"] + config.get("d_out", config["d_in"])) * config["d_sae"]
            limit.check(source, num_values, 2 * _FLOAT32_BYTES * num_values)
            sae = SAE.from_pretrained(release, sae_id, device="cpu", dtype="float32")
        except (KeyError, TypeError, ValueError, RecursionError, RuntimeError) as error:
            reason = next(iter(str(error).splitlines()), "")[:200] or type(error).__name__
            raise refusal(source, f"cannot be loaded by SAELens: {reason}") from error
    with contextlib.suppress(NotImplementedError):  # where the norms decide which features are active, they stay
        sae.fold_W_dec_norm()
    described = sae.cfg.to_dict()
    state = sae.state_dict()
    sae.process_state_dict_for_saving(state)
    # Copied, since they may be views of a mapped file.
    tensors = {name: tensor.detach().clone() for name, tensor in state.items()}
    del sae, state
    return StoredDictionary(source, described, tensors, hashlib.sha256(dump_weights(tensors)).hexdigest())


def _find_repo(release: str, sae_id: str, source: str) -> str:
    releases = get_pretrained_saes_directory()
    if release not in releases:
        raise refusal(source, f"is not there: SAELens knows no release {release!r}{_nearest(release, releases)}")
    known = releases[release].saes_map
    if sae_id not in known:
        reason = f"is not there: the release has no SAE {sae_id!r}{_nearest(sae_id, known)}; one is {next(iter(known))}"
        raise refusal(source, reason)
    repo: str = releases[release].repo_id
    return repo


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
