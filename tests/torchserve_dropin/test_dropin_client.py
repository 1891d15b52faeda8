"""Archives of torch-model-archiver, called by examples/torchserve_client.py as TorchServe's users call theirs."""

import json
import os
import subprocess
import sys

import pytest
import torch
from densenet161 import DenseNet161
from dropin_site import PATIENCE_S, ROOT, text_of
from PIL import Image

PHOTO = ROOT / "examples" / "samples" / "cat.jpg"


def client(site, *arguments, code=0):
    """What the client prints; with an error's code, what it says of it."""
    done = subprocess.run(
        [
            *(sys.executable, ROOT / "examples" / "torchserve_client.py"),
            *("--inference", site.inference, "--management", site.management, *map(str, arguments)),
        ],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (done.returncode, done.stderr == "") == (code, code == 0), done.stderr
    return (done.stderr if code else done.stdout).splitlines()


def expected(weights):
    """The five likeliest classes of the photo and their probabilities, computed here."""
    network = DenseNet161().eval()
    assert sum(one.numel() for one in network.parameters()) == 28_681_000  # as published
    network.load_state_dict(torch.load(weights, weights_only=True, mmap=True))
    photo = Image.open(PHOTO).convert("RGB")
    scale = 256 / min(photo.size)
    photo = photo.resize([int(side * scale) for side in photo.size], Image.Resampling.BILINEAR)
    left, top = (round((side - 224) / 2) for side in photo.size)
    square = photo.crop((left, top, left + 224, top + 224))
    pixels = torch.tensor(list(square.tobytes()), dtype=torch.float32).view(224, 224, 3).permute(2, 0, 1) / 255
    mean, deviation = (torch.tensor(one).view(3, 1, 1) for one in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.inference_mode():
        likely = network(((pixels - mean) / deviation)[None]).softmax(dim=1).topk(5)
    return {f"class {one}": p for p, one in zip(likely.values[0].tolist(), likely.indices[0].tolist(), strict=True)}


def test_densenet161(site):
    """DenseNet-161 is registered by its file's name, asked with a photo, and unregistered; its five classes are those
    that the network gives here.
    """
    assert client(site, "register", "densenet161", "mnist,densenet161") == [
        'Model "densenet161" Version: 1.0 registered with 1 initial workers'
    ]
    try:
        answer = json.loads("\n".join(client(site, "infer", "densenet161", PHOTO, "--auth-token", "T")))
    finally:
        assert client(site, "unregister", "densenet161") == ['Model "densenet161" unregistered']
    assert client(site, "infer", "densenet161", PHOTO, code=1) == ["NOT_FOUND: Model not found: densenet161"]
    wanted = expected(site.folder / "sources" / "densenet161.pth")
    assert list(answer) == list(wanted)
    assert list(answer.values()) == pytest.approx(list(wanted.values()), rel=1e-3)


def test_metadata(site, tmp_path):
    """What the client sends with a call is among the request's headers, but for what is the server's own; a response
    header is trailing metadata.
    """
    (tmp_path / "file").write_text("anything")
    with site.registered("headers.mar", "headers"):
        headers = json.loads("\n".join(client(site, "infer", "headers", tmp_path / "file", "--auth-token", "T")))
        forged = [("describe", "True"), ("ts_request_sequence_id", "1"), ("mine", "yes")]
        call = site.ask("headers", metadata=forged)
        forged_headers = json.loads(text_of(call.result()))
    assert (headers["protocol"], headers["session_id"]) == ("gRPC", "12345")
    assert forged_headers["mine"] == "yes"
    assert {"describe", "ts_request_sequence_id"} & forged_headers.keys() == set()
    assert dict(call.trailing_metadata())["answered-by"] == "headers"


def test_streaming_echo(site, tmp_path):
    """An archive that sends three times hello on the way and world at the end: four messages of a stream, and one
    answer of a unary call, again and again.
    """
    (tmp_path / "file").write_text("anything")
    with site.registered("echo.mar", "echo"):
        for _ in range(2):
            assert client(site, "infer_stream", "echo", tmp_path / "file") == ["hello", "hello", "hello", "world"]
            assert text_of(site.ask("echo").result()) == "hellohellohelloworld"


def test_sequence_of_files(site, tmp_path):
    """Each file is a message of one sequence: its replies are in order and carry its id; an error is a reply."""
    for name in ("1", "20", "x", "300"):
        (tmp_path / name).write_text(name)
    files = ",".join(str(tmp_path / name) for name in ("1", "20", "x", "300"))
    with site.registered("sum.mar", "sum"):
        replies = client(site, "infer_stream2", "sum", "seq_0", files)
    assert (replies[:2], replies[3:]) == (["seq_0: 1", "seq_0: 21"], ["seq_0: 321"])
    assert replies[2].startswith("seq_0: status 13: ValueError: invalid literal for int()")


def test_a_url_is_fetched_from_nowhere(site):
    """TorchServe's own archives are at an address that is not allowed: the client is told, and nothing is there."""
    (line,) = client(site, "register", "mnist", code=1)
    assert "https://torchserve.pytorch.org/mar_files/mnist.mar" in line
    assert '"mnist"' not in site.manage("ListModels", limit=100)


def test_a_reader_that_has_read_enough(site):
    """`... | head`: the client ends without a word."""
    read, write = os.pipe()
    os.close(read)
    with open(write, "wb") as closed:  # noqa: PTH123  # it is a descriptor
        command = [sys.executable, ROOT / "examples" / "torchserve_client.py", "--management", site.management, "list"]
        done = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, timeout=PATIENCE_S, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
