"""What else handlers import from `ts`: classes by name, pieces of generated text, micro-batches, distributed handlers,
contexts for their own tests, and torch's profiler.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import warnings

import pytest
import tokenizers
import torch
import transformers
from torchserve_asking import answer
from torchserve_texts import LINE_HANDLER, MODEL


def test_import_class(ts):
    """A class is found by its full name or below a prefix; what is missing is named."""
    find = ts("handler_utils.utils").import_class
    dimension = ts("metrics.dimension").Dimension
    assert find("ts.metrics.dimension.Dimension") is dimension
    assert find("dimension.Dimension", "ts.metrics") is dimension
    assert find("Dimension", "ts.metrics.dimension") is dimension
    for name, text in (
        ("ts.metrics.dimension.Absent", "'Absent' is not in"),
        ("Alone", "must be named"),
        ("", "named"),
    ):
        with pytest.raises(ImportError, match=text):
            find(name)


def test_sequence_of_backends(ts):
    """Backends of torch.compile are known by name."""
    util = ts("utils.util")
    assert util.check_valid_pt2_backend("inductor")
    assert not util.check_valid_pt2_backend("warp")
    assert util.PT2Backend("aot_eager") is util.PT2Backend.AOT_EAGER


def test_deprecated(ts):
    """A function that is marked as old works and warns, naming its replacement."""
    old = ts("utils.util").deprecated("1.0", "new_place")(lambda value: value + 1)
    with pytest.warns(PendingDeprecationWarning, match="old since 1.0; use new_place"):
        assert old(1) == 2


def test_text_of_a_prediction_exception(ts):
    """Its text has message and code, and both are attributes."""
    error = ts("service").PredictionException("no", 404)
    assert (str(error), error.message, error.error_code) == ("no : 404", "no", 404)


def test_yaml(ts, tmp_path):
    """YAML is read as data: what would make objects is refused."""
    read = ts("utils.util").get_yaml_config
    path = tmp_path / "c.yaml"
    path.write_text("a: [1, 2]\n")
    assert read(path) == {"a": [1, 2]}
    path.write_text("!!python/object/apply:os.getpid []")
    with pytest.raises(Exception, match="could not determine a constructor"):
        read(path)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "absent.yaml")


# --- micro-batches ------------------------------------------------------------------------------

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
    assert json.loads(answer(micro, b"a", describe="True")[0]) == {"about": "parts"}
    assert answer(micro, b"a", explain="True")[0] == b"a for 0"


def test_wrong_parallelism(micro, ts):
    """No threads and unknown stages are refused by name."""
    pipeline = ts("handler_utils.micro_batching").MicroBatching(object())
    with pytest.raises(ValueError, match="parallelism of inference is 0"):
        pipeline.parallelism = {"inference": 0}
    with pytest.raises(ValueError, match="parallelism has 'train'"):
        pipeline.parallelism = {"train": 1}
    assert pipeline.parallelism == {"preprocess": 1, "inference": 1, "postprocess": 1}


# --- generated text -----------------------------------------------------------------------------


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


# --- handlers of several processes --------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "kind", "library"),
    [
        ("base_deepspeed_handler", "BaseDeepSpeedHandler", "deepspeed"),
        ("base_pippy_handler", "BasePippyHandler", "pippy"),
    ],
)
def test_distributed(load, module, kind, library):
    """A handler that spreads its model over processes can be imported; its load names the library that is missing."""
    source = (
        f"from ts.torch_handler.distributed.{module} import {kind}\n"
        "from ts.handler_utils.distributed.deepspeed import get_ds_engine\n"
        "from ts.handler_utils.distributed.pt_pippy import get_pipeline_driver, initialize_rpc_workers\n"
        f"class Mine({kind}):\n    pass\n"
    )
    with pytest.raises(ImportError, match=f"Mine needs {library}, which is not installed"):
        load("mine.py", {"mine.py": source})


def test_distributed_with_its_library(load, tmp_path):
    """Where the library is there, the load says that such models are not served."""
    (tmp_path / "pippy.py").write_text("")
    source = (
        "from ts.torch_handler.distributed.base_pippy_handler import BasePippyHandler\n"
        "class Mine(BasePippyHandler):\n    pass\n"
    )
    with pytest.raises(NotImplementedError, match="one model in several processes"):
        load("mine.py", {"mine.py": source})


# --- base handler -------------------------------------------------------------------------------


def test_mock_context(ts, tmp_path):
    """A handler's own tests initialise and call it with a context that needs no server, and see what it sends."""
    mock = ts("torch_handler.unit_tests.test_utils.mock_context").MockContext
    (tmp_path / "m.py").write_text(MODEL)
    torch.save({"weight": torch.tensor([1.0, 10.0])}, tmp_path / "m.pt")
    (tmp_path / "c.yaml").write_text("handler:\n  profile: true\n")
    context = mock("m.pt", str(tmp_path), "m.py", model_name="mine", model_yaml_config_file="c.yaml")
    handler = ts("torch_handler.base_handler").BaseHandler()
    handler.initialize(context)
    assert handler.handle([[3.0, 4.0]], context) == [43.0]
    timed = [f"gauge:ts_handler_{stage}" for stage in ("preprocess", "inference", "postprocess")]
    assert context.metrics.cache_keys() == [*timed, "gauge:HandlerTime"]
    ts("handler_utils.utils").send_intermediate_predict_response(["x"], context.request_ids, "ok", 200, context)
    assert context.sent == [(["x"], {0: "0"}, "ok", 200)]
    context.explain = True
    assert context.get_request_header(0, "explain") == "True"
    assert (context.get_request_header(0, "other"), context.manifest["model"]["modelName"]) == (None, "mine")


OWN_LOADING = """
import torch

from ts.torch_handler.base_handler import BaseHandler


class Mine(BaseHandler):
    def _load_torchscript_model(self, model_pt_path):
        return torch.nn.Identity()

    def preprocess(self, data):
        return torch.ones(len(data))

    def postprocess(self, data):
        return [f"{one} {self.model.training} {self.get_device()}" for one in data.tolist()]
"""


def test_own_way_of_loading(load, tmp_path):
    """A subclass that loads its file in its own way is asked to, and its model is put into evaluation."""
    (tmp_path / "any.pt").write_bytes(b"of its own kind")
    handler = load("mine.py", {"mine.py": OWN_LOADING}, serialized_file="any.pt")
    assert answer(handler, b"") == [b"1.0 False cpu"]


EXPLAINED = """
from ts.torch_handler.base_handler import BaseHandler


class Mine(BaseHandler):
    def initialize(self, context):
        pass

    def preprocess(self, data):
        return [len(row["data"]) for row in data]

    def get_insights(self, inputs, raw, target):
        return [f"{inputs} {bytes(raw).decode()} {target}"]
"""


@pytest.mark.parametrize(
    ("data", "said"), [(b"text", b"[4] text 0"), (b'{"target": 3}', b'[13] {"target": 3} 3'), (b"[1]", b"[3] [1] 0")]
)
def test_explanations(load, data, said):
    """`get_insights` gets what was prepared, what was sent, and the target that it names."""
    assert answer(load("mine.py", {"mine.py": EXPLAINED}), data, explain="True") == [said]


def test_explanations_that_cannot_be(load):
    """A target that is no number is named; a handler without get_insights says that it explains nothing."""
    (error,) = answer(load("mine.py", {"mine.py": EXPLAINED}), b'{"target": "x"}', explain="True")
    assert str(error) == "target is 'x'; it must be the number of a class"
    sys.modules.pop("mine")
    source = EXPLAINED.replace("get_insights", "get_nothing")
    (error,) = answer(load("mine.py", {"mine.py": source}), b"x", explain="True")
    assert str(error) == "Mine explains nothing: it has no get_insights"


def test_profiler(load, tmp_path, monkeypatch, caplog):
    """ENABLE_TORCH_PROFILER=true writes a trace of each call below the temporary folder, and the answer stays."""
    monkeypatch.setenv("ENABLE_TORCH_PROFILER", "true")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    torch.save({"weight": torch.tensor([1.0, 10.0])}, tmp_path / "m.pt")
    handler = load("h.py", {"h.py": LINE_HANDLER, "m.py": MODEL}, model_file="m.py", serialized_file="m.pt")
    with caplog.at_level(logging.INFO), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about what this machine lacks
        assert answer(handler, b"[3.0, 4.0]") == [b"43.0"]
    (trace,) = (tmp_path / "pytorch_profiler" / "model").iterdir()
    assert trace.name.endswith(".pt.trace.json")
    assert "Self CPU time total" in caplog.text


def test_onnx_without_onnxruntime(load, tmp_path, monkeypatch):
    """A .onnx file where onnxruntime is missing fails the load and names it."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    (tmp_path / "m.onnx").write_bytes(b"?")
    with pytest.raises(ImportError, match="needs onnxruntime"):
        load("base_handler", serialized_file="m.onnx")
