"""The handlers of texts: tokens, vocabularies of every kind, batches, and explanations, beside TorchServe's own."""

from __future__ import annotations

import importlib
import io
import json
import sys
from itertools import pairwise
from types import ModuleType

import pytest
import torch
from torchserve_asking import answer
from wheels_of_others import CAPTUM, TORCHSERVE

SENTENCE = "I can't believe it's <b>caf\u00e9</b> night&nbsp;now!"
WORDS = ["i", "cannot", "believe", "it", "is", "cafe", "nightnow"]
NGRAMS = [*WORDS, *(f"{one} {two}" for one, two in pairwise(WORDS))]
TOKENS = ["<unk>", *NGRAMS, "good", "bad", "good bad"]

MODEL = """
import torch


class Texts(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = torch.nn.EmbeddingBag(40, 8, mode="mean")
        self.scores = torch.nn.Linear(8, 3)

    def forward(self, numbers, offsets):
        return self.scores(self.embedding(numbers, offsets))
"""
LABELS = json.dumps({"0": "sad", "1": "glad", "2": ["n1", "mad"]})


def saved(what):
    """What torch.save writes; bytes are written already."""
    if isinstance(what, bytes):
        return what
    buffer = io.BytesIO()
    torch.save(what, buffer)
    return buffer.getvalue()


@pytest.fixture
def classifier(load, tmp_path):
    """The built-in with a vocabulary of the kind that is given."""

    def make(vocabulary):
        (tmp_path / "source_vocab.pt").write_bytes(saved(vocabulary))
        return load("text_classifier", {"texts.py": MODEL, "index_to_name.json": LABELS}, model_file="texts.py")

    return make


def test_tokens(ts):
    """Tags, entities, accents and punctuation go, contractions are in full; then come words and pairs of words."""
    handler = ts("torch_handler.text_classifier").TextClassifier()
    tokens = handler._tokenize(handler._clean(SENTENCE))
    assert tokens == WORDS
    assert list(ts("handler_utils.text_utils").ngrams_iterator(tokens, 2)) == NGRAMS


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ('"You can (now) go; stop: wait..."', ["you", "can", "(", "now", ")", "go", "stop", "wait", ".", ".", "."]),
        ("It's<br />OK, isn't it?!", ["it", "'", "s", "ok", ",", "isn", "'", "t", "it", "?", "!"]),
        ("  ", []),
    ],
)
def test_basic_english(ts, text, tokens):
    """Signs are tokens of their own, quotes are gone, semicolons, colons and line breaks are gaps."""
    assert ts("handler_utils.text_utils").get_tokenizer("basic_english")(text) == tokens


def test_other_tokenizers(ts):
    """None splits at spaces, a callable is itself, and what needs torchtext is refused by name."""
    get = ts("handler_utils.text_utils").get_tokenizer
    assert get(None)("a  b") == ["a", "b"]
    assert get(len) is len
    with pytest.raises(ValueError, match="tokenizer 'spacy'"):
        get("spacy")
    with pytest.raises(ValueError, match="for English"):
        get("basic_english", "de")


@pytest.mark.parametrize("widths", [1, 2, 3, 9])
@pytest.mark.parametrize("length", range(6))
def test_number_of_ngrams(ts, length, widths):
    """The count of n-grams is that of the iterator."""
    utils = ts("handler_utils.text_utils")
    assert utils.count_ngrams(length, widths) == len(list(utils.ngrams_iterator(["x"] * length, widths)))


def test_contractions_keep_their_capital(ts):
    """The longest contraction counts, and a capital stays one."""
    handler = ts("torch_handler.text_handler").TextHandler()
    assert handler._expand_contractions("I'd've, He'LL and they can't've; rock'n'roll") == (
        "I would have, He will and they cannot have; rocknroll"
    )


def as_torchtext(monkeypatch, tokens, default):
    """What torch.save makes of torchtext's vocabulary: a module whose `vocab` is a table in C++ with its own state."""

    class Table:
        def __getstate__(self):
            return ("0.0.2", [] if default is None else [default], tokens, [])

        def __setstate__(self, state):
            raise AssertionError(state)

    class Vocab(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.vocab = Table()

    for kind, path in ((Table, "torchtext._torchtext"), (Vocab, "torchtext.vocab.vocab")):
        kind.__module__, kind.__name__, kind.__qualname__ = path, "Vocab", "Vocab"
        for part in ("torchtext", "torchtext.vocab", path):
            monkeypatch.setitem(sys.modules, part, ModuleType(part))
        sys.modules[path].Vocab = kind
    return saved(Vocab())


def test_vocabularies(classifier, monkeypatch):
    """A dict, a list and a torchtext vocabulary of the same tokens give the same answers, without torchtext."""
    answers = []
    for vocabulary in (
        {token: number for number, token in enumerate(TOKENS)},
        TOKENS,
        as_torchtext(monkeypatch, TOKENS, 0),
        as_torchtext(monkeypatch, TOKENS, None),
    ):
        answers.extend(answer(classifier(vocabulary), SENTENCE.encode()))
        sys.modules.pop("texts", None)
    probabilities = json.loads(answers[0])
    assert set(probabilities) == {"sad", "glad", "mad"}
    assert sum(probabilities.values()) == pytest.approx(1)
    assert answers[1:] == answers[:1] * 3


def test_default_of_a_vocabulary(ts, tmp_path, monkeypatch):
    """A token that is not there has the vocabulary's default number, else that of <unk>, else the error names it."""
    read = ts("torch_handler.vocabulary").load_vocabulary
    path = tmp_path / "v.pt"
    numbers = []
    for vocabulary in (as_torchtext(monkeypatch, ["a", "b"], 1), {"a": 5, "<unk>": 7}):
        path.write_bytes(saved(vocabulary))
        numbers.append(read(path)(["a", "absent"]))
    assert numbers == [[0, 1], [5, 7]]
    torch.save({"a": 5, "b": 4}, path)
    assert (read(path).get_itos(), len(read(path)), "a" in read(path)) == (["b", "a"], 2, True)
    with pytest.raises(KeyError, match="token 'absent' is not in the vocabulary"):
        read(path)["absent"]


class Evil:
    def __reduce__(self):
        return (print, ("evil",))


@pytest.mark.parametrize(
    ("vocabulary", "text"),
    [
        (Evil(), "Weights only load failed"),
        ({"a": "b"}, "'a' is no token with a number"),
        ([1, 2], "its tokens are not all texts"),
        (torch.ones(2), "it holds a Tensor"),
    ],
)
def test_wrong_vocabularies(classifier, vocabulary, text):
    """What would run code, or is no vocabulary, fails the load and says so."""
    with pytest.raises(Exception, match=text):
        classifier(vocabulary)


def test_missing_vocabulary(load):
    """Without a vocabulary the error names its file."""
    with pytest.raises(FileNotFoundError, match=r"need a vocabulary.*source_vocab\.pt"):
        load("text_classifier", {"texts.py": MODEL}, model_file="texts.py")


def test_a_batch(classifier):
    """A batch of texts, an empty one among them, is answered as each text alone."""
    handler = classifier(TOKENS)
    texts = [b"good bad", b"", SENTENCE.encode(), b"good"]
    together = [json.loads(one) for one in answer(handler, *texts)]
    alone = [json.loads(answer(handler, text)[0]) for text in texts]
    for one, other in zip(together, alone, strict=True):
        assert one == pytest.approx(other)


def test_explanation_without_captum(classifier):
    """Nobody needs captum until an explanation is asked for; then the error names it."""
    (error,) = answer(classifier(TOKENS), b"good", explain="True")
    assert isinstance(error, ImportError)
    assert "explanations need captum" in str(error)


OURS = """
import sys

sys.path.append({captum!r})
from ts.torch_handler.text_classifier import TextClassifier


class Mine(TextClassifier):
    pass
"""
THEIRS = """
import sys

sys.path.append({captum!r})
import ts.torch_handler

ts.torch_handler.__path__.insert(0, {theirs!r})
from ts.torch_handler import text_classifier

assert text_classifier.__file__.startswith({theirs!r})


class Mine(text_classifier.TextClassifier):
    pass
"""


def test_beside_theirs(store, others):
    """Our text_classifier and TorchServe's own say the same of a text, and explain it alike."""
    vocabulary = saved({token: number for number, token in enumerate(TOKENS)})
    files = {"texts.py": MODEL, "index_to_name.json": LABELS, "source_vocab.pt": vocabulary}
    model = importlib.util.module_from_spec(importlib.util.spec_from_loader("texts", None))
    exec(MODEL, model.__dict__)  # noqa: S102  # the text above
    files["texts.pt"] = saved(model.Texts().state_dict())
    places = {"captum": str(others(CAPTUM)), "theirs": str(others(TORCHSERVE) / "ts" / "torch_handler")}
    said, explained = [], []
    for name, handler in (("our_text", OURS), ("their_text", THEIRS)):
        named = {"model_file": "texts.py", "serialized_file": "texts.pt"}
        store.serve(name, "mine.py", files | {"mine.py": handler.format(**places)}, **named)
        said.append(json.loads(store.predict(name, SENTENCE.encode())[0]))
        answer, _ = store.predict(name, SENTENCE.encode(), metadata=[("explain", "True")])
        explained.append(json.loads(answer))
    assert said[0] == pytest.approx(said[1])
    assert explained[0]["words"] == explained[1]["words"] == WORDS
    assert torch.tensor(explained[0]["importances"]).allclose(torch.tensor(explained[1]["importances"]), atol=1e-6)
