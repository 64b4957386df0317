"""Models and dictionaries small enough to work with by hand, written to folders in the formats that real ones come in.

Everything here is random with a fixed seed, or planted with numbers that can be computed on paper; nothing is
downloaded. The byte tokenizer's ids are the bytes themselves (0 to 255), then the special tokens.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from steerserve.core.config import Settings

if TYPE_CHECKING:
    from pathlib import Path

    from sae_lens import SAE
    from transformers import PreTrainedModel

Architecture = Literal["standard", "topk", "jumprelu", "gated"]

D_MODEL = 48
NUM_LAYERS = 2
CONTEXT = 128
IM_START_ID, IM_END_ID, PAD_ID = 256, 257, 258
VOCAB_SIZE = 259
HOOK_NAME = "blocks.0.hook_resid_post"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are tiny.<|im_end|>\\n' }}"
    "{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""SmolLM2's ChatML template with a shorter default system prompt."""


def tiny_llama_folder(path: Path, *, seed: int = 0, context: int = CONTEXT) -> Path:
    """Write a two-layer Llama with grouped-query attention and a byte tokenizer; returns `path`."""
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=D_MODEL,
        intermediate_size=96,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        tie_word_embeddings=False,
        bos_token_id=IM_START_ID,
        eos_token_id=IM_END_ID,
        pad_token_id=PAD_ID,
    )
    return _save(LlamaForCausalLM(config), path, seed)


def tiny_gpt2_folder(path: Path, *, seed: int = 0) -> Path:
    """Write a two-layer GPT-2 (learned positions, tied unembedding) and a byte tokenizer; returns `path`."""
    config = GPT2Config(
        vocab_size=VOCAB_SIZE,
        n_embd=D_MODEL,
        n_layer=NUM_LAYERS,
        n_head=4,
        n_positions=CONTEXT,
        bos_token_id=IM_START_ID,
        eos_token_id=IM_END_ID,
        pad_token_id=PAD_ID,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    return _save(GPT2LMHeadModel(config), path, seed)


def tiny_settings(folder: Path, *, context: int = CONTEXT, **sections: dict[str, Any]) -> Settings:
    """Write a Llama with a random dictionary `res0` into `folder`; returns the settings of a server of the two.

    `sections` are merged over the settings, as in `engine={"slots": 1}`.
    """
    model = tiny_llama_folder(folder / "tiny", context=context)
    dictionary = tiny_sae_folder(folder / "dictionaries" / "res0")
    values: dict[str, Any] = {
        "model": {"source": str(model), "device": "cpu"},
        "dictionaries": [{"id": "res0", "source": f"path:{dictionary}"}],
        "dictionary_dirs": [str(folder / "dictionaries")],
        "cache_dir": str(folder / "cache"),
        "engine": {"slots": 4, "context": context, "queue": 64},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return Settings.model_validate(values)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Build a tokenizer with one token a byte and ChatML's special tokens; it adds no BOS by itself."""
    vocab = {character: byte for byte, character in enumerate(_byte_alphabet())}
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<|im_start|>", "<|im_end|>", "<pad>"]
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in specials])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<pad>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
    )


def tiny_sae_folder(
    path: Path,
    architecture: Architecture = "standard",
    *,
    d_in: int = D_MODEL,
    d_sae: int = 96,
    hook_name: str = HOOK_NAME,
    model_name: str = "tiny",
    seed: int = 0,
) -> Path:
    """Write a random dictionary in SAELens' format; returns `path`.

    The tiny models' residuals have components of about 3 after the first block, encoder columns are of length 0.3:
    pre-activations are of about unit variance and two features in five fire (topk: 8). Biases, thresholds, gates and
    decoder norms all differ from their neutral values.
    """
    generator = torch.Generator().manual_seed(seed)
    sae = _empty_sae(architecture, d_in=d_in, d_sae=d_sae, hook_name=hook_name, model_name=model_name)
    encoder = torch.randn(d_in, d_sae, generator=generator)
    decoder = torch.randn(d_sae, d_in, generator=generator)
    values = {
        "W_enc": 0.3 * encoder / encoder.norm(dim=0),
        "W_dec": decoder / decoder.norm(dim=1, keepdim=True) * _uniform(d_sae, 0.5, 2.0, generator)[:, None],
        "b_dec": 0.2 * torch.randn(d_in, generator=generator),
        "b_enc": 0.3 * torch.randn(d_sae, generator=generator),
        "threshold": _uniform(d_sae, 0.1, 0.8, generator),
        "b_gate": 0.3 * torch.randn(d_sae, generator=generator),
        "b_mag": 0.3 * torch.randn(d_sae, generator=generator),
        "r_mag": 0.3 * torch.randn(d_sae, generator=generator),
    }
    sae.load_state_dict({name: values[name] for name in sae.state_dict()})
    sae.save_model(path)
    return path


def planted_sae_folder(
    path: Path,
    *,
    d_in: int = D_MODEL,
    d_sae: int = 16,
    hook_name: str = HOOK_NAME,
    model_name: str = "tiny",
) -> Path:
    """Write a standard dictionary whose feature `i` reads and writes component `i` of the residual; returns `path`.

    Directions are unit vectors of the standard basis, biases are zero: `f_i = max(0, x_i)`, and a change `df_i` adds
    `df_i` to component `i` and to nothing else. Needs `d_sae <= d_in`.
    """
    sae = _empty_sae("standard", d_in=d_in, d_sae=d_sae, hook_name=hook_name, model_name=model_name)
    basis = torch.eye(d_in)[:d_sae]
    zeros = {"b_enc": torch.zeros(d_sae), "b_dec": torch.zeros(d_in)}
    sae.load_state_dict({"W_enc": basis.T.contiguous(), "W_dec": basis, **zeros})
    sae.save_model(path)
    return path


def _save(model: PreTrainedModel, path: Path, seed: int) -> Path:
    _randomise(model, torch.Generator().manual_seed(seed))
    model.save_pretrained(path, safe_serialization=True)
    byte_tokenizer().save_pretrained(path)
    return path


@torch.no_grad()
def _randomise(model: PreTrainedModel, generator: torch.Generator) -> None:
    """Draw weights that give lively residuals and logits; transformers' own start is all but the identity."""
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith(("embed_tokens.weight", "wte.weight", "wpe.weight")):
            parameter.copy_(0.5 * noise)
        elif name == "lm_head.weight":
            # What is no printable character by itself is made unlikely, so that most texts can be read and are long.
            noise[:32] *= 0.3
            noise[127:] *= 0.3
            parameter.copy_(2.5 * noise / math.sqrt(D_MODEL))
        elif parameter.ndim > 1:
            parameter.copy_(1.5 * noise / math.sqrt(D_MODEL))
        elif "norm" in name or "ln_" in name:
            parameter.copy_((1.0 if name.endswith("weight") else 0.0) + 0.1 * noise)
        else:
            parameter.copy_(0.1 * noise)


def _empty_sae(architecture: Architecture, *, d_in: int, d_sae: int, hook_name: str, model_name: str) -> SAE[object]:
    # Importing SAELens takes seconds, which tests that need only a model should not pay.
    from sae_lens import SAE
    from sae_lens.saes.sae import SAEMetadata

    metadata = SAEMetadata(
        model_name=model_name,
        hook_name=hook_name,
        context_size=CONTEXT,
        prepend_bos=False,
        exclude_special_tokens=[IM_START_ID],
    )
    config = {"architecture": architecture, "d_in": d_in, "d_sae": d_sae, "dtype": "float32", "device": "cpu"}
    if architecture == "topk":
        config |= {"k": 8, "rescale_acts_by_decoder_norm": True}
    config_class = SAE.get_sae_config_class_for_architecture(architecture)
    sae_config = config_class.from_dict(config)
    sae_config.metadata = metadata
    return SAE.get_sae_class_for_architecture(architecture)(sae_config)


def _uniform(size: int, low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    return low + (high - low) * torch.rand(size, generator=generator)


def _byte_alphabet() -> list[str]:
    """Give GPT-2's printable character for each byte.

    Source: `bytes_to_unicode` in transformers' GPT-2 tokenizer.
    """
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    rest = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(256 + rest.index(byte)) for byte in range(256)]
