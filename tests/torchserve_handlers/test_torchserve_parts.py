"""Batches in parts: micro-batches, and the pieces of text that a batch generates."""

from __future__ import annotations

import json
import threading

import pytest
import tokenizers
import torch
import transformers
from torchserve_asking import answer

MICRO = """
import threading

from ts.handler_utils.micro_batching import MicroBatching
from ts.torch_handler.base_handler import BaseHandler


class Micro(BaseHandler):
    def __init__(self):
        super().__init__()
        self.handle = MicroBatching(self, 2)

    def initialize(self, context):
        config = context.model_yaml_config["micro_batching"]
        self.handle.micro_batch_size = config["micro_batch_size"]
        self.handle.parallelism = config["parallelism"]

    def preprocess(self, data):
        return [(row["data"].decode(), self.handle.get_micro_batch_idx()) for row in data]

    def inference(self, words):
        if ("fail", 0) in words:
            raise ValueError("this part failed")
        return [f"{word} {index} of {len(words)} in {threading.current_thread().name}" for word, index in words]

    def postprocess(self, words):
        return words

    def describe_handle(self):
        return {"about": "parts"}

    def get_insights(self, inputs, raw, target):
        return [f"{inputs[0][0]} for {target}"]
"""


@pytest.fixture
def micro(load):
    config = {"micro_batching": {"micro_batch_size": 3, "parallelism": {"inference": 2}}}
    return load("mine.py", {"mine.py": MICRO}, model_yaml_config=config)


def test_micro_batches(micro):
    """A batch is cut into parts of the configured size, in order; a stage knows its part, and has its own threads."""
    said = [one.decode() for one in answer(micro, *(b"w%d" % index for index in range(7)))]
    assert [one.partition(" in ")[0] for one in said] == [
        *("w0 0 of 3", "w1 0 of 3", "w2 0 of 3", "w3 1 of 3", "w4 1 of 3", "w5 1 of 3", "w6 2 of 1"),
    ]
    assert {one.partition(" in ")[2][:9] for one in said} == {"inference"}
    assert sum(thread.name.startswith("inference") for thread in threading.enumerate()) <= 2


def test_a_part_that_fails(micro):
    """What a stage raises fails the batch, and the next one is answered."""
    assert [str(one) for one in answer(micro, b"fail", b"b", b"c", b"d")] == ["this part failed"] * 4
    assert answer(micro, b"b")[0].startswith(b"b 0 of 1")


def test_micro_batches_describe_and_explain(micro):
    """A description and an explanation go past the parts."""
    assert json.loads(micro.describe()) == {"about": "parts"}
    assert answer(micro, b"a", explain="True")[0] == b"a for 0"


def test_wrong_parallelism(micro, ts):
    """No threads and unknown stages are refused by name."""
    pipeline = ts("handler_utils.micro_batching").MicroBatching(object())
    with pytest.raises(ValueError, match="parallelism of inference is 0"):
        pipeline.parallelism = {"inference": 0}
    with pytest.raises(ValueError, match="parallelism has 'train'"):
        pipeline.parallelism = {"train": 1}
    assert pipeline.parallelism == {"preprocess": 1, "inference": 1, "postprocess": 1}


def words():
    """A tokenizer of four words."""
    vocabulary = {"[UNK]": 0, "[EOS]": 1, "red": 2, "green": 3, "blue": 4}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))  # noqa: S106  # a token
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", eos_token="[EOS]")  # noqa: S106


def test_streamer_of_a_batch(ts):
    """Each item has a piece of every row; the pieces of a row are its text, however long the others are."""
    batch = ts("handler_utils.hf_batch_streamer").TextIteratorStreamerBatch
    streamer = batch(words(), 2, skip_prompt=True, timeout=60, skip_special_tokens=True)
    streamer.put(torch.tensor([[2, 2], [3, 3]]))
    for tokens in ([2, 4], [3, 4], [4, 1], [2, 1]):
        streamer.put(torch.tensor(tokens))
    streamer.end()
    pieces = list(streamer)
    assert all(list(piece) == ["text"] for item in pieces for piece in item)
    assert ["".join(item[row]["text"] for item in pieces) for row in (0, 1)] == ["red green blue red", "blue blue"]


def test_streamer_generates(ts):
    """It streams what transformers generates for a batch."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=5, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                                      num_attention_heads=2, eos_token_id=None, bos_token_id=None)  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    tokenizer = words()
    streamer = ts("handler_utils.hf_batch_streamer").TextIteratorStreamerBatch(tokenizer, 2, skip_prompt=True)
    inputs = {"input_ids": torch.tensor([[2, 3], [4, 2]]), "attention_mask": torch.ones(2, 2, dtype=torch.int64)}
    generated = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    thread = threading.Thread(
        target=model.generate, kwargs={**inputs, "max_new_tokens": 6, "do_sample": False, "streamer": streamer}
    )
    thread.start()
    pieces = list(streamer)
    thread.join()
    texts = ["".join(item[row]["text"] for item in pieces) for row in (0, 1)]
    assert texts == tokenizer.batch_decode(generated[:, 2:])


def test_streamer_of_another_batch(ts):
    """Another number of rows is refused."""
    streamer = ts("handler_utils.hf_batch_streamer").TextIteratorStreamerBatch(words(), 2)
    with pytest.raises(ValueError, match="made for 2 rows"):
        streamer.put(torch.tensor([[1], [2], [3]]))
