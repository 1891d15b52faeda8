"""The built-in `text_classifier`."""

from __future__ import annotations

from typing import Any

import torch

from ..handler_utils.text_utils import count_ngrams, ngrams_iterator
from ..utils.util import map_class_to_label
from .explanation import captum_attr
from .text_handler import TextHandler


class TextClassifier(TextHandler):
    """Answers each text with {label: probability} of every class.

    The model takes the numbers of all words and n-grams of the batch, one after the other, and the offset at which each
    text begins, as torch.nn.EmbeddingBag does.
    """

    ngrams = 2

    def preprocess(self, data: Any) -> tuple[torch.Tensor, Any]:
        """Numbers [n], and the tokens: those of the text, or of a batch a list for each text."""
        texts = [self._tokenize(self._clean(_text(row))) for row in data]
        numbers = [self.source_vocab[one] for tokens in texts for one in ngrams_iterator(tokens, self.ngrams)]
        tensor = torch.tensor(numbers, dtype=torch.int64, device=self.device)
        return tensor, texts[0] if len(texts) == 1 else texts

    def inference(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        """The model's scores [texts, classes]."""
        numbers, tokens = data
        return super().inference(numbers, self._offsets(tokens), *args, **kwargs)

    def postprocess(self, data: Any) -> list[Any]:
        """Probabilities by the labels of index_to_name.json, or else by the classes' numbers."""
        return map_class_to_label(torch.nn.functional.softmax(data, dim=-1).tolist(), self.mapping)

    def get_insights(self, text_preprocess: Any, _: Any, target: int = 0) -> list[Any]:
        """How much each word spoke for class `target`: {"importances", "words"} of one text. Needs captum."""
        numbers, tokens = text_preprocess
        reference = captum_attr().TokenReferenceBase().generate_reference(numbers.shape[0], device=self.device)
        attributions = self.layer_gradients().attribute(
            numbers,
            reference.squeeze(0),
            additional_forward_args=(self._offsets(tokens),),
            return_convergence_delta=False,
            target=target,
        )
        importances = self.summarize_attributions(attributions).tolist()
        return [{"importances": importances, "words": self.get_word_token(tokens)}]

    def _offsets(self, tokens: Any) -> torch.Tensor:
        texts = tokens if tokens and isinstance(tokens[0], list) else [tokens]
        lengths = [count_ngrams(len(text), self.ngrams) for text in texts]
        return torch.tensor([0, *lengths[:-1]], device=self.device).cumsum(0)


def _text(row: Any) -> str:
    content = row.get("data") if row.get("data") is not None else row.get("body")
    if content is None:
        raise ValueError("the request has neither data nor body")
    return bytes(content).decode() if isinstance(content, (bytes, bytearray)) else str(content)
