"""From a request to token ids: the chat template, or a prompt as it is.

1. `data` is what a user says: it goes into ChatML, the template of SmolLM2 (and many others), behind a system text.
   Each part is tokenised by itself and control tokens are put between, so that no user can forge one by spelling it.
2. `prompt` is taken as it is, and there control tokens that are spelt out count: for those who build a dialogue.
What must not live here: the network, sampling. The source of the template is the GGUF file's `tokenizer.chat_template`.
"""

from __future__ import annotations

import re

from tokenizers import Tokenizer

from actorserve.errors import BadInput
from actorserve.handlers.base import Request
from actorserve.handlers.gguf_llama import Vocabulary
from actorserve.handlers.inputs import main_input, text

__all__ = ["SYSTEM", "Prompter"]

_BYTES_PER_TOKEN = 32  # a text with more bytes than this for each token of the limit is refused untokenised
SYSTEM = "You are a helpful assistant."
"""Not the text that SmolLM2's template brings along (it names the model and its maker): with that one, a statement to
complete, such as "The capital of France is", is taken for a greeting; with this one it is completed."""
_START, _END = "<|im_start|>", "<|im_end|>"


class Prompter:
    """Turns requests into token ids."""

    def __init__(self, tokenizer: Tokenizer, vocabulary: Vocabulary, limit: int, system: str = SYSTEM) -> None:
        """`limit`: how many tokens a prompt may have; `system`: the system text where a request brings none."""
        self._tokenizer = tokenizer
        self._control = vocabulary.control
        self._limit = limit
        self._spelt = re.compile("(" + "|".join(re.escape(name) for name in vocabulary.control) + ")")
        self._chats = _START in vocabulary.template and {_START, _END} <= vocabulary.control.keys()
        self._system = system

    def tokens(self, request: Request) -> list[int]:
        """The ids to begin with."""
        if "prompt" in request.inputs:
            field, tokens = "prompt", self._raw(request)
        else:
            field, tokens = "data", self._chat(request)
        if len(tokens) > self._limit:
            raise BadInput(field, f"the prompt has {len(tokens)} tokens; the model takes {self._limit}: shorten it")
        return tokens

    def _raw(self, request: Request) -> list[int]:
        extra = [key for key in ("data", "body", "system") if key in request.inputs]
        if extra:
            raise BadInput("prompt", f"'prompt' is taken as it is, so {extra[0]!r} has no place beside it")
        spoken = self._bounded(request.inputs["prompt"], "prompt")
        tokens: list[int] = []
        for part in self._spelt.split(spoken) if self._control else [spoken]:
            tokens += [self._control[part]] if part in self._control else self._encode(part)
        return tokens

    def _chat(self, request: Request) -> list[int]:
        if not self._chats:
            raise BadInput("data", "this model has no chat template; send the text under the key 'prompt'")
        said = self._bounded(main_input(request), "data")
        system = self._system
        if "system" in request.inputs:
            system = self._bounded(request.inputs["system"], "system")
        start, end, line = self._control[_START], self._control[_END], self._encode("\n")
        tokens = [start, *self._encode("system\n" + system), end, *line]
        tokens += [start, *self._encode("user\n" + said), end, *line]
        return [*tokens, start, *self._encode("assistant\n")]

    def _bounded(self, value: bytes, field: str) -> str:
        if len(value) > self._limit * _BYTES_PER_TOKEN:
            raise BadInput(field, f"the text has {len(value)} bytes; the model takes {self._limit} tokens: shorten it")
        return text(value, field)

    def _encode(self, part: str) -> list[int]:
        return list(self._tokenizer.encode(part, add_special_tokens=False).ids)
