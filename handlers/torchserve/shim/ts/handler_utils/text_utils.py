"""Words and n-grams of a text, as torchtext's tokenizer `basic_english` makes them, without torchtext."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

APART = re.compile(r"[.,()!?']")
"""Signs that become tokens of their own."""
GONE = re.compile(r'"')
BREAKS = re.compile(r"<br />|[;:]")


def ngrams_iterator(token_list: Sequence[str], ngrams: int) -> Iterator[str]:
    """Every token, then every pair of neighbours joined by a space, and so on up to `ngrams` neighbours."""
    yield from token_list
    for width in range(2, ngrams + 1):
        for start in range(len(token_list) - width + 1):
            yield " ".join(token_list[start : start + width])


def count_ngrams(tokens: int, ngrams: int) -> int:
    """How many items `ngrams_iterator` gives for so many tokens."""
    return tokens + sum(max(0, tokens - width + 1) for width in range(2, ngrams + 1))


def basic_english(line: str) -> list[str]:
    """Lower-case tokens: signs stand alone, double quotes are gone, semicolons and colons are gaps."""
    return APART.sub(r" \g<0> ", BREAKS.sub(" ", GONE.sub("", line.lower()))).split()


def get_tokenizer(tokenizer: Any, language: str = "en") -> Callable[[str], Any]:
    """A tokenizer by its name: "basic_english", None for words between spaces, or a callable, which is given back.

    Any other needs torchtext: ValueError.
    """
    if tokenizer is None:
        return str.split
    if callable(tokenizer):
        return tokenizer  # type: ignore[no-any-return]  # the caller's own
    if tokenizer != "basic_english":
        raise ValueError(f"tokenizer {tokenizer!r}: only basic_english, None and a callable work without torchtext")
    if language != "en":
        raise ValueError(f"tokenizer basic_english is for English (en), not {language!r}")
    return basic_english
