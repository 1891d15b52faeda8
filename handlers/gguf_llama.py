"""From a GGUF file of a Llama model to what text_generation.py maps: fused float32 weights, configuration, tokenizer.

All of it goes into one safetensors file: the weights as tensors, the rest as JSON in its metadata.
What must not live here: GGUF's bytes (gguf.py), the network (llama.py). The sources are the GGUF specification's list
of standard keys and, for the tokenizer, GPT-2's byte-level BPE.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from actorserve.errors import LoadFailed
from actorserve.handlers.gguf import Gguf, read_gguf
from actorserve.handlers.llama import LlamaConfig, fuse
from actorserve.handlers.weights_cache import Converted

__all__ = ["CONVERTER", "Vocabulary", "config_of", "convert", "tokenizer_of", "vocabulary_of"]

CONVERTER = "gguf llama float32 1"

_CONTROL = 3  # GGUF's token type for those that no text spells, as <|im_end|>


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What a token id stands for besides its text."""

    pieces: list[bytes]
    end: int
    template: str
    control: dict[str, int]


def convert(source: Path) -> Converted:
    """Everything that serving needs, out of the GGUF file."""
    file = read_gguf(source)
    config = _config(file)
    weights = {name: torch.from_numpy(file.tensor(name)) for name in file.names}
    metadata = {"config": json.dumps(asdict(config)), "tokenizer": _tokenizer(file.metadata).to_str()}
    return fuse(weights, config.layers), metadata | {"vocabulary": json.dumps(_extras(file.metadata))}


def config_of(metadata: Mapping[str, str]) -> LlamaConfig:
    """The network's configuration, from a converted file's metadata."""
    return LlamaConfig(**json.loads(metadata["config"]))


def tokenizer_of(metadata: Mapping[str, str]) -> Tokenizer:
    """The tokenizer, from a converted file's metadata. It knows no control tokens: a text cannot smuggle one in."""
    return Tokenizer.from_str(metadata["tokenizer"])


def vocabulary_of(metadata: Mapping[str, str], tokenizer: Tokenizer) -> Vocabulary:
    """The bytes of each token (none for a control token), the end's id, the template's text."""
    extras = json.loads(metadata["vocabulary"])
    control = {name: int(number) for name, number in extras["control"].items()}
    to_latin1 = {ord(character): byte for character, byte in _bytes_of_characters().items()}
    spelt = tokenizer.get_vocab()
    pieces = [b""] * len(spelt)
    for token, number in spelt.items():
        if token not in control:
            pieces[number] = token.translate(to_latin1).encode("latin-1")
    return Vocabulary(pieces, extras["end"], extras["template"], control)


def _config(file: Gguf) -> LlamaConfig:
    data = file.metadata
    if data.get("general.architecture") != "llama":
        raise LoadFailed(f"the GGUF file holds a {data.get('general.architecture')!r} model, not a 'llama'")
    if data.get("llama.rope.scaling.type", "none") != "none" or "rope_freqs.weight" in file.names:
        raise LoadFailed("the GGUF file scales its rotary positions; this network does not")
    heads = int(_entry(data, "llama.attention.head_count"))
    config = LlamaConfig(
        layers=int(_entry(data, "llama.block_count")),
        heads=heads,
        kv_heads=int(data.get("llama.attention.head_count_kv", heads)),
        eps=float(_entry(data, "llama.attention.layer_norm_rms_epsilon")),
        rope_base=float(data.get("llama.rope.freq_base", 10000.0)),
        context=int(_entry(data, "llama.context_length")),
    )
    head_size = int(_entry(data, "llama.embedding_length")) // heads
    if data.get("llama.rope.dimension_count", head_size) != head_size:
        raise LoadFailed("the GGUF file turns only a part of each head; this network turns all of it")
    return config


def _tokenizer(data: Mapping[str, Any]) -> Tokenizer:
    if data.get("tokenizer.ggml.model") != "gpt2":
        raise LoadFailed(f"the tokenizer {data.get('tokenizer.ggml.model')!r} is not byte-level BPE ('gpt2')")
    vocabulary = {token: number for number, token in enumerate(_entry(data, "tokenizer.ggml.tokens"))}
    merges = [tuple(merge.split(" ", 1)) for merge in _entry(data, "tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = _splitter(data.get("tokenizer.ggml.pre", "default"))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _splitter(name: str) -> pre_tokenizers.PreTokenizer:
    """How a text is cut before pairs are merged; SmolLM's takes each digit by itself."""
    spelling = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if name == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), spelling])
    if name in ("gpt-2", "default"):
        return spelling
    raise LoadFailed(f"the tokenizer splits its text by rule {name!r}; this reader knows 'smollm' and 'gpt-2'")


def _extras(data: Mapping[str, Any]) -> dict[str, Any]:
    tokens, kinds = _entry(data, "tokenizer.ggml.tokens"), _entry(data, "tokenizer.ggml.token_type")
    return {
        "end": int(_entry(data, "tokenizer.ggml.eos_token_id")),
        "template": str(data.get("tokenizer.chat_template", "")),
        "control": {tokens[number]: number for number, kind in enumerate(kinds) if kind == _CONTROL},
    }


def _entry(data: Mapping[str, Any], key: str) -> Any:
    if key not in data:
        raise LoadFailed(f"the GGUF file lacks {key}")
    return data[key]


def _bytes_of_characters() -> dict[str, int]:
    """Byte-level BPE spells a byte as itself where it can be printed, else as the next character from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + index): byte for index, byte in enumerate(hidden)}
