"""The vocabulary of a text model: which number a token has. Read without running what a file says.

`source_vocab.pt` is what `torch.save` made of a torchtext vocabulary, of a dict from token to number, or of a list of
tokens. torchtext is not needed: its classes are stood for by those below, which hold data and nothing else.
What must not live here: how texts become tokens (text_handler.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

UNKNOWN = "<unk>"


class Vocabulary:
    """Numbers by token. A token that is not there has the default number; KeyError where there is none."""

    def __init__(self, tokens: Mapping[str, int], default: int | None = None) -> None:
        self._numbers = dict(tokens)
        self._default = self._numbers.get(UNKNOWN) if default is None else default

    def __len__(self) -> int:
        return len(self._numbers)

    def __contains__(self, token: str) -> bool:
        return token in self._numbers

    def __getitem__(self, token: str) -> int:
        number = self._numbers.get(token, self._default)
        if number is None:
            raise KeyError(f"token {token!r} is not in the vocabulary, which has no default and no {UNKNOWN}")
        return number

    def __call__(self, tokens: Sequence[str]) -> list[int]:
        """The numbers of several tokens."""
        return [self[token] for token in tokens]

    lookup_indices = __call__

    def get_default_index(self) -> int | None:
        """The number of tokens that are not there."""
        return self._default

    def get_stoi(self) -> dict[str, int]:
        """Numbers by token."""
        return dict(self._numbers)

    def get_itos(self) -> list[str]:
        """Tokens in the order of their numbers."""
        return sorted(self._numbers, key=self._numbers.__getitem__)


class _TextVocab:
    """Stands for torchtext.vocab.vocab.Vocab, a module whose attribute `vocab` is the table."""

    vocab: Any = None

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.vocab = state.get("vocab")


class _TextTable:
    """Stands for torchtext._torchtext.Vocab: its state is (version, [default number] or [], tokens, tensors)."""

    state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state


STAND_INS: list[Any] = [
    (_TextVocab, "torchtext.vocab.vocab.Vocab"),
    (_TextVocab, "torchtext.vocab.Vocab"),
    (_TextTable, "torchtext._torchtext.Vocab"),
]


def load_vocabulary(path: str | Path) -> Vocabulary:
    """Read a file; ValueError where it holds no vocabulary, pickle.UnpicklingError where it would run code."""
    with torch.serialization.safe_globals(STAND_INS):
        content = torch.load(path, map_location="cpu", weights_only=True)
    try:
        return _of(content)
    except (TypeError, ValueError, IndexError) as error:
        raise ValueError(
            f"{Path(path).name}: {error}; it must be a torchtext vocabulary, a dict from token to number or a list"
        ) from error


def _of(content: Any) -> Vocabulary:
    if isinstance(content, _TextVocab):
        content = content.vocab
    if isinstance(content, _TextTable):
        _, numbers, tokens, *_ = content.state
        return Vocabulary(_numbered(tokens), numbers[0] if numbers else None)
    if isinstance(content, (list, tuple)):
        return Vocabulary(_numbered(content))
    if not isinstance(content, Mapping):
        raise TypeError(f"it holds a {type(content).__name__}")
    wrong = [key for key, value in content.items() if not isinstance(key, str) or type(value) is not int]
    if wrong:
        raise TypeError(f"{wrong[0]!r:.40} is no token with a number")
    return Vocabulary(content)


def _numbered(tokens: Sequence[Any]) -> dict[str, int]:
    if not all(isinstance(token, str) for token in tokens):
        raise TypeError("its tokens are not all texts")
    return {token: number for number, token in enumerate(tokens)}
