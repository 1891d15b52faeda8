"""What a manifest and a model-config.yaml mean, and what they cannot do."""

import json

import pytest
from packing import manifest as packed

from actorserve.actors import manifest
from actorserve.errors import BadInput, Unsupported


def parse(data, files=("m.py", "w.pt")):
    return manifest.parse_manifest(data, files.__contains__)


def test_manifest():
    """The texts of `model` and the whole content come out; what is not there is empty."""
    read = parse(packed(modelName="m", handler="h.py", modelFile="m.py", serializedFile="w.pt", modelVersion="2.1"))
    assert (read.model["modelName"], read.model["modelVersion"]) == ("m", "2.1")
    assert (read.model["handler"], read.model["configFile"]) == ("h.py", "")
    assert read.content["archiverVersion"] == "0.12.0"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"{", "it is not JSON"),
        (b"[]", "it is not an object"),
        (b"\xff\xfe", "it is not JSON"),
        (b"[" * 100_000, "it is not JSON"),
        (b'{"a": NaN}', "it is not JSON"),
        (b'{"a": "%s"}' % (b"x" * (1 << 20)), "larger than 1048576 bytes"),
        (b'{"model": 3}', "model is not an object"),
        (b'{"runtime": "lua"}', "Invalid RuntimeType value: 'lua'"),
        (b'{"runtime": ["python"]}', "Invalid RuntimeType value"),
        (packed(modelName=3), "model.modelName is not text"),
        (packed(serializedFile="gone.pt"), "model.serializedFile 'gone.pt' is not in the archive"),
        (packed(serializedFile="../w.pt"), "'../w.pt' is not the bare name of a file"),
        (packed(configFile="/etc/passwd"), "'/etc/passwd' is not the bare name of a file"),
        (packed(requirementsFile="a\0b"), "is not the bare name"),
        (packed(handler="../h.py:f"), "model.handler '../h.py' is not the bare name"),
    ],
)
def test_wrong_manifests(data, text):
    """A manifest that cannot be is refused, naming the file and the key."""
    with pytest.raises(BadInput) as caught:
        parse(data)
    assert caught.value.field == "url"
    assert "MAR-INF/MANIFEST.json" in caught.value.text
    assert text in caught.value.text


def test_runtime():
    """TorchServe's C++ runtime is told to be unsupported."""
    with pytest.raises(Unsupported):
        parse(b'{"runtime": "LSP"}')


@pytest.mark.parametrize(
    ("handler", "native"),
    [("h.py", False), ("h", False), ("h:entry", False), ("h.py:Handler", False), ("image_classifier", False),
     ("h:Handler", True), ("package.module:Handler", True)],
)  # fmt: skip
def test_notations(handler, native):
    """TorchServe's notation is told from ours by the class, which has a capital."""
    assert manifest.is_native(handler) is native


# --- model-config.yaml --------------------------------------------------------------------------------

YAML = b"""
minWorkers: 2
maxWorkers: 4
batchSize: 8
maxBatchDelay: 50
responseTimeout: 10
jobQueueSize: 7
maxNumSequence: 3
sequenceMaxIdleMSec: 1500
deviceType: cpu
useJobTicket: true
useVenv: true
handler: {top_k: 5, since: 2026-11-24, 3: three}
"""


def test_settings():
    """Keys become ours, in our units; the whole is for the handler; what has no effect is said."""
    settings = manifest.settle(manifest.parse_yaml(YAML, "c.yaml"))
    assert settings.content == {
        "batch_size": 8, "max_batch_delay_ms": 50, "queue_size": 7, "max_sequences": 3,
        "sequence_idle_timeout_s": 1.5, "device": "cpu", "job_tickets": True,
    }  # fmt: skip
    assert settings.fixed == {
        "workers": {"min": 2, "max": 4}, "response_timeout_s": 10, "startup_timeout_s": 120.0
    }  # fmt: skip
    assert settings.yaml["handler"] == {"top_k": 5, "since": "2026-11-24", "3": "three"}
    assert settings.ignored == ("useVenv has no effect",)


@pytest.mark.parametrize(
    "text", ["batchSize: many", "batchSize: 0", "batchSize: true", "maxBatchDelay: -1", "minWorkers: 2",
             "{minWorkers: 3, maxWorkers: 2}", "deviceType: tpu", "deviceIds: [0, 9]", "deviceIds: gpu"]
)  # fmt: skip
def test_wrong_types_are_ignored(text):
    """A value of a wrong type, or a device that is not there, is ignored and told, as in TorchServe."""
    settings = manifest.settle(manifest.parse_yaml(text.encode(), "c.yaml"), ["cuda:0"])
    assert settings.content == {}
    assert settings.fixed == {"response_timeout_s": 120, "startup_timeout_s": 120}
    assert len(settings.ignored) == 1


def test_devices():
    """GPUs are named by deviceIds, each once."""
    settings = manifest.settle({"deviceIds": [1, 0, 1]}, ["cuda:0", "cuda:1"])
    assert settings.content["device"] == ["cuda:1", "cuda:0"]


ALIASES = b"a: &a [x,x,x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (name + 1, name + 1, b",".join([b"*%c" % name] * 9)) for name in range(97, 107)
)
MERGES = b"a: &a {x: 1, y: 2}\n" + b"".join(
    b"%c: &%c {<<: [%s]}\n" % (name + 1, name + 1, b",".join([b"*%c" % name] * 9)) for name in range(97, 107)
)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"!!python/object/apply:os.system ['touch /tmp/owned']", "could not determine a constructor"),
        (b"a: !!python/name:os.system", "could not determine a constructor"),
        (b"a: [", "expected"),
        (b"\0", "special characters are not allowed"),
        (b"- a", "it is not a mapping"),
        (b"text", "it is not a mapping"),
        (b"a: .inf", "a value of type float"),
        (b"a: !!binary aGVsbG8=", "a value of type bytes"),
        (b"a: 99999999999999999999999", "a value of type int"),
        (b"a: " + b"[" * 5000 + b"]" * 5000, "nested deeper than 64"),
        (b"a: " + b"x" * (128 << 10), "larger than 131072 bytes"),
        (b"a: &a [*a]", "deeper than 64"),
        (ALIASES, "more than 10 aliases"),
        (MERGES, "more than 10 aliases"),
        (b"? [a, b]\n: c", ""),
    ],
)
def test_yaml_attacks(data, text):
    """No object is made from YAML, no alias grows without bound, nothing reaches a worker that JSON has not."""
    with pytest.raises(BadInput) as caught:
        manifest.parse_yaml(data, "c.yaml")
    assert caught.value.text.startswith("c.yaml: ")
    assert text in caught.value.text


def test_a_few_aliases():
    """Anchors and merge keys as people write them work; an empty file says nothing."""
    assert manifest.parse_yaml(b"a: &a {x: 1}\nb: {<<: *a, y: 2}", "c.yaml")["b"] == {"x": 1, "y": 2}
    assert manifest.parse_yaml(b"# nothing\n", "c.yaml") == {}


def test_options_travel():
    """What TorchServe's handler gets can be written as JSON."""
    read = parse(packed(handler="h.py", serializedFile="w.pt"))
    settings = manifest.settle(manifest.parse_yaml(YAML, "c.yaml"))
    options = manifest.options(read, settings.yaml, handler="h.py", batch_size=8)
    assert json.loads(json.dumps(options)) == options
    assert (options["serialized_file"], options["model_file"], options["batch_size"]) == ("w.pt", "", 8)
