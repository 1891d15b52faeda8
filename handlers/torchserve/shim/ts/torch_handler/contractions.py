"""English contractions in full, for the handlers of texts: in lower case, with straight quotes."""

from __future__ import annotations

NEGATED = (
    *("are", "could", "did", "does", "do", "had", "has", "have", "is", "may", "might", "must", "need", "ought"),
    *("should", "was", "were", "would"),
)
NEGATED_PERFECT = ("could", "had", "might", "must", "need", "ought", "should", "would")
WOULD = ("he", "i", "it", "she", "that", "there", "they", "we", "you", "y'all")
WILL = ("he", "i", "it", "she", "they", "we", "what", "who", "you")
HAVE = (
    *("could", "i", "might", "must", "should", "so", "they", "to", "we", "what", "when", "where", "who", "why"),
    *("will", "would", "y'all", "you"),
)
ARE = ("they", "we", "what", "y'all", "you")
IS = ("he", "how", "it", "she", "that", "there", "what", "when", "where", "who", "why")
ODD = {
    "ain't": "is not",
    "can't": "cannot",
    "can't've": "cannot have",
    "shan't": "shall not",
    "sha'n't": "shall not",
    "shan't've": "shall not have",
    "won't": "will not",
    "won't've": "will not have",
    "i'm": "i am",
    "let's": "let us",
    "so's": "so as",
    "how'd": "how did",
    "how'd'y": "how do you",
    "how'll": "how will",
    "where'd": "where did",
    "'cause": "because",
    "ma'am": "madam",
    "o'clock": "of the clock",
    "y'all": "you all",
}


def _regular() -> dict[str, str]:
    """What follows from a word and its ending."""
    found = {f"{word}n't": f"{word} not" for word in NEGATED}
    found |= {f"{word}n't've": f"{word} not have" for word in NEGATED_PERFECT}
    for words, ending, full in (
        (WOULD, "'d", "would"),
        (WOULD, "'d've", "would have"),
        (WILL, "'ll", "will"),
        (WILL, "'ll've", "will have"),
        (HAVE, "'ve", "have"),
        (ARE, "'re", "are"),
        (IS, "'s", "is"),
    ):
        found |= {word + ending: f"{ODD.get(word, word)} {full}" for word in words}
    return found


CONTRACTION_MAP = _regular() | ODD
