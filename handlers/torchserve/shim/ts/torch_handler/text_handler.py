"""What the handlers of texts share: the vocabulary, and how a text is cleaned and cut into tokens.

captum is imported only where somebody asks for an explanation. What must not live here: what a model answers.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..handler_utils.text_utils import get_tokenizer
from ..utils.util import CLEANUP_REGEX
from .base_handler import BaseHandler
from .contractions import CONTRACTION_MAP
from .explanation import captum_attr
from .vocabulary import load_vocabulary

VOCABULARY = "source_vocab.pt"
CONTRACTIONS_PATTERN = re.compile(
    "|".join(re.escape(one) for one in sorted(CONTRACTION_MAP, key=len, reverse=True)), re.IGNORECASE
)
PUNCTUATION = str.maketrans("", "", string.punctuation)


class TextHandler(BaseHandler):
    """See the module's docstring. The vocabulary is `source_vocab`, the tokenizer `tokenizer`."""

    def __init__(self) -> None:
        super().__init__()
        self.source_vocab: Any = None
        self.tokenizer: Any = get_tokenizer("basic_english")
        self.input_text: Any = None
        self.lig: Any = None

    def initialize(self, context: Any) -> None:
        """As the base handler's, and the vocabulary: the manifest's `sourceVocab`, else source_vocab.pt."""
        super().initialize(context)
        self.initialized = False
        self.source_vocab = load_vocabulary(self.get_source_vocab_path(context))
        self.initialized = True

    def get_source_vocab_path(self, ctx: Any) -> str:
        """The vocabulary's file; FileNotFoundError where it is missing."""
        named = ctx.manifest.get("model", {}).get("sourceVocab") or VOCABULARY
        path = Path(ctx.system_properties["model_dir"]) / named
        if not path.is_file():
            raise FileNotFoundError(2, "the handlers of texts need a vocabulary; the model has no such file", str(path))
        return str(path)

    def layer_gradients(self) -> Any:
        """LayerIntegratedGradients of the layer `embedding`; ImportError names captum where it is absent."""
        if self.lig is None:
            self.lig = captum_attr().LayerIntegratedGradients(self.model, self.model.embedding)
        return self.lig

    def _clean(self, text: str) -> str:
        """Lower case; without tags, contractions, accents and punctuation."""
        text = self._remove_html_tags(text).lower()
        return self._remove_punctuation(self._remove_accented_characters(self._expand_contractions(text)))

    def _expand_contractions(self, text: str) -> str:
        """Contractions in full, with the first letter's case; other apostrophes go."""
        return CONTRACTIONS_PATTERN.sub(_expanded, text).replace("'", "")

    def _remove_accented_characters(self, text: str) -> str:
        """Letters without their accents; what is not ASCII even then goes."""
        return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()

    def _remove_html_tags(self, text: str) -> str:
        """Without tags and entities."""
        return CLEANUP_REGEX.sub("", text)

    def _remove_punctuation(self, text: str) -> str:
        """Without ASCII punctuation."""
        return text.translate(PUNCTUATION)

    _remove_puncutation = _remove_punctuation
    """TorchServe's first spelling."""

    def _tokenize(self, text: str) -> Any:
        return self.tokenizer(text)

    def get_word_token(self, input_tokens: Sequence[str]) -> list[str]:
        """Tokens without the sign that byte-pair encodings write for a space."""
        return [token.replace("\u0120", "") for token in input_tokens]

    def summarize_attributions(self, attributions: torch.Tensor) -> torch.Tensor:
        """Attributions [tokens, n] as shares along n, divided by the norm of their sums."""
        shares = torch.nn.functional.softmax(attributions, dim=-1)
        found: torch.Tensor = shares / torch.linalg.vector_norm(shares.sum(dim=-1))
        return found


def _expanded(match: re.Match[str]) -> str:
    found = match.group(0)
    full = CONTRACTION_MAP[found.lower()]
    return full if found[0].islower() or not found[0].isalpha() else full[0].upper() + full[1:]
