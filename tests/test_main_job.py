"""The main job, from outside: the server of examples/zoo/config.toml, called by plain grpcio and by the examples."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from zoo_server import ROOT, Served, served

from actorserve import config
from actorserve.proto.inference_pb2 import PredictionResponse, PredictionsRequest

pytestmark = pytest.mark.zoo
SERVICE = "/org.pytorch.serve.grpc.inference.InferenceAPIsService"
README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("zoo")
    cache = f"--set=server.cache_dir={folder / 'cache'}"
    with served("examples/zoo/config.toml", cache, log=folder / "log") as server:
        yield server


@pytest.fixture(scope="module")
def channel(zoo: Served) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(zoo.inference) as channel:
        yield channel


def predict(channel: grpc.Channel, model: str, **inputs: bytes) -> bytes:
    call = channel.unary_unary(
        f"{SERVICE}/Predictions",
        request_serializer=PredictionsRequest.SerializeToString,
        response_deserializer=PredictionResponse.FromString,
    )
    return call(PredictionsRequest(model_name=model, input=inputs), timeout=60).prediction


def stream(channel: grpc.Channel, model: str, **inputs: bytes) -> grpc.UnaryStreamMultiCallable:
    call = channel.unary_stream(
        f"{SERVICE}/StreamPredictions",
        request_serializer=PredictionsRequest.SerializeToString,
        response_deserializer=PredictionResponse.FromString,
    )
    return call(PredictionsRequest(model_name=model, input=inputs), timeout=120)


def shape(text: str) -> list[str]:
    """A text without its figures, bars and spaces, line by line."""
    return [" ".join(re.sub(r"[-\d.#]+", " ", line).split()) for line in text.strip().splitlines()]


def shown_in_readme(name: str) -> str:
    _, _, rest = README.partition(f"    $ python examples/{name}.py\n")
    lines = []
    for line in rest.splitlines():
        if line.startswith("    $") or (line and not line.startswith("    ")):
            break
        lines.append(line)
    return "\n".join(lines)


def test_held_out_digits_as_images(channel):
    """Digits of the held-out quarter, sent as PNG files, come back right over 97 % of the time."""
    digits = load_digits()
    _, images, _, labels = train_test_split(
        digits.images, digits.target, test_size=0.25, random_state=0, stratify=digits.target
    )
    right = 0
    for pixels, label in zip(images, labels, strict=True):
        file = io.BytesIO()
        Image.fromarray((pixels * 255 / 16).astype(np.uint8)).save(file, "PNG")
        right += json.loads(predict(channel, "digits", data=file.getvalue()))["digit"] == label
    assert right / len(labels) > 0.97


def test_cat_is_a_cat(channel):
    """The photo of the cat is classified as a cat."""
    answer = json.loads(predict(channel, "image", data=(ROOT / "examples/samples/cat.jpg").read_bytes()))
    assert re.search(r"\b(cat|tabby)\b", json.dumps(answer)[:80], re.IGNORECASE)


def test_paraphrases_are_close(channel):
    """Two paraphrases embed closer than two unrelated sentences."""
    texts = (b"How old are you?", b"What is your age?", b"The stock market fell sharply today.")
    one, two, other = (np.array(json.loads(predict(channel, "minilm", data=text))) for text in texts)
    assert one @ two > one @ other + 0.3


def test_capital_of_france_streamed(channel):
    """SmolLM2 names Paris, and its first token arrives while the rest is still being generated."""
    began = time.monotonic()
    arrivals, pieces = [], []
    for piece in stream(channel, "smollm2", data=b"The capital of France is", max_tokens=b"24"):
        arrivals.append(time.monotonic() - began)
        pieces.append(piece.prediction.decode())
    assert "Paris" in "".join(pieces)
    assert len(arrivals) > 3
    assert arrivals[0] < arrivals[-1] * 0.9


def test_unary_call_of_a_streaming_model_gives_the_whole(channel):
    """Predictions on a streaming handler answers the chunks concatenated, in order."""
    inputs = {"data": b"Count from one to five.", "max_tokens": b"16"}
    pieces = [piece.prediction for piece in stream(channel, "smollm2", **inputs)]
    assert predict(channel, "smollm2", **inputs) == b"".join(pieces)


@pytest.mark.parametrize("name", ["recognise_digit", "classify_photo", "embed_sentences", "embed_sentences_grpclib"])
def test_example_prints_what_the_readme_shows(zoo, name):
    """An example prints what the README shows for it, figures apart."""
    script = ROOT / "examples" / f"{name}.py"
    done = subprocess.run(
        [sys.executable, script, zoo.inference], capture_output=True, text=True, timeout=120, check=True
    )
    assert shape(shown_in_readme(name)) == shape(done.stdout)


def test_story_streams(zoo):
    """The story example prints a story."""
    script = ROOT / "examples" / "stream_story.py"
    done = subprocess.run(
        [sys.executable, script, zoo.inference], capture_output=True, text=True, timeout=180, check=True
    )
    assert len(done.stdout.split()) > 40


CLIENT = ["--inference", "127.0.0.1:1", "infer", "model", str(ROOT / "README.md")]


def test_example_says_that_there_is_no_server():
    """An example that cannot reach its server says so in one line, without a traceback."""
    for script in sorted((ROOT / "examples").glob("*.py")):
        done = subprocess.run(
            [sys.executable, script, *(CLIENT if script.stem == "torchserve_client" else ["127.0.0.1:1"])],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 1, script.name
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_readme_links_and_commands():
    """Every file that the README and the docs link to exists, and the README has its two commands."""
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
    commands = re.findall(r"^    (python3 -m venv .*)$", README, re.MULTILINE)
    assert len(commands) == 2
    assert commands[0].endswith("-m actorserve")
    assert commands[1].endswith("just zoo test")


def test_config_toml_is_the_default():
    """The repository's config.toml is what is served without a file."""
    written = config.load(ROOT / "config.toml")
    default = config.load(None)
    assert default.models == written.models
    assert default.listeners == written.listeners
