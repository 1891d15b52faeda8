"""What no restart can mend: the exceptions of torch and its friends for weights that are absent, wrong or corrupt."""

import errno
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from actorserve.actors.load_errors import is_permanent
from actorserve.errors import BadInput, LoadFailed

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # models of this kind are still served


class Net(torch.nn.Module):
    def __init__(self, size: int = 64) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(size, size)

    def forward(self, x):
        return self.layer(x)


WRITERS = {
    "zip": lambda path: torch.save(Net().state_dict(), path),
    "legacy": lambda path: torch.save(Net().state_dict(), path, _use_new_zipfile_serialization=False),
    "script": lambda path: torch.jit.save(torch.jit.script(Net()), path),
    "safetensors": lambda path: save_file(Net().state_dict(), path),
}
READS = {
    "zip": [
        lambda path: torch.load(path, weights_only=True),
        lambda path: torch.load(path, weights_only=True, mmap=True),
        lambda path: torch.load(path, weights_only=False),
    ],
    "script": [torch.jit.load],
    "safetensors": [load_file],
}
READS["legacy"] = READS["zip"]
DAMAGES = {
    "empty": lambda _: b"",
    "half": lambda data: data[: len(data) // 2],
    "a byte short": lambda data: data[:-1],
    "without its beginning": lambda data: data[100:],
    "another file": lambda _: b"<html>404</html>" * 50,
    "zeros": lambda data: bytes(len(data)),
}


def raised(call, *given) -> Exception:
    """What a call raises."""
    with pytest.raises(Exception) as info:  # noqa: PT011  # whatever it is, is what is judged
        call(*given)
    return info.value


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", WRITERS)
def test_damaged_weights(tmp_path, kind, damage):
    """A damaged file of weights is permanent, in every format, however it is read and whatever that raises."""
    path = tmp_path / "weights"
    WRITERS[kind](path)
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    for read in READS[kind]:
        error = raised(read, path)
        assert is_permanent(error), repr(error)


@pytest.mark.parametrize("kind", WRITERS)
def test_missing_weights(tmp_path, kind):
    """No file, or a folder in its place, is permanent."""
    for path in (tmp_path / "nothing", tmp_path):
        for read in READS[kind]:
            error = raised(read, path)
            assert is_permanent(error) or "No such device" in str(error), repr(error)


def wrapped():
    try:
        pickle.loads(b"garbage")  # noqa: S301  # a test's own bytes
    except pickle.UnpicklingError as error:
        raise OSError("cannot load the model") from error


@pytest.mark.parametrize(
    "call",
    [
        lambda: Net(3).load_state_dict(Net().state_dict()),
        lambda: Net().load_state_dict({}),
        lambda: zipfile.ZipFile(__file__),
        lambda: Tokenizer.from_str("{"),
        lambda: Path(__file__, "x").read_bytes(),
        lambda: __import__("no_such_module"),
        lambda: Net().to("cuda:99"),
        wrapped,
    ],
    ids=["shape", "keys", "zip", "tokenizer", "not a folder", "import", "device", "a cause"],
)
def test_wrong(call):
    """Weights of another model, files of another kind, code or devices that are absent: permanent."""
    error = raised(call)
    assert is_permanent(error), repr(error)


def out_of_memory():
    """What torch.load raises where the device is full."""
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "no"),
        OSError(errno.EMFILE, "too many open files"),
        OSError(errno.EIO, "no"),
        TimeoutError("later"),
        ConnectionRefusedError(errno.ECONNREFUSED, "later"),
        RuntimeError("the licence server is busy"),
        RuntimeError("CUDA error: out of memory"),
        LoadFailed("later", permanent=False),
    ],
    ids=repr,
)
def test_may_pass(error):
    """What may pass is tried again."""
    assert not is_permanent(error)


def test_want_of_memory_inside_a_reader(tmp_path):
    """A device that is full is no corrupt file, even where torch.load is what says so."""
    torch.save({"x": torch.zeros(3)}, tmp_path / "weights")
    error = raised(lambda: torch.load(tmp_path / "weights", map_location=lambda *_: out_of_memory()))
    assert not is_permanent(error)
    assert not is_permanent(raised(torch.empty, 1 << 60))


def test_what_says_itself():
    """LoadFailed and the errors of the house say whether it is worth a try."""
    assert is_permanent(LoadFailed("no"))
    assert is_permanent(BadInput("options.x", "is wrong"))
