"""Clients that were not written here: stubs built from the same contracts, in one process with the server."""

import subprocess
import sys
from pathlib import Path

import google.rpc.status_pb2
import grpc_tools
import pytest

HERE = Path(__file__).resolve().parent
PROTO = HERE.parents[1] / "proto"
GRPC_TOOLS = Path(grpc_tools.__file__).parent / "_proto"
SITE_PACKAGES = Path(google.rpc.status_pb2.__file__).parents[2]


@pytest.fixture
def stubs(tmp_path):
    """`inference_pb2` and its like, top-level and in the default pool, as TorchServe's clients make them."""
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO}", f"-I{GRPC_TOOLS}", f"-I{SITE_PACKAGES}"]
    command += [f"--python_out={tmp_path}", f"--grpc_python_out={tmp_path}", "inference.proto", "management.proto"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return tmp_path


def test_side_by_side(stubs, tmp_path):
    """An unmodified grpcio client built from TorchServe's protos calls a server that lives in its own process.

    Beside it are grpcio's health and reflection modules: no duplicate symbol, and every call is answered.
    """
    script = [sys.executable, "-W", "error::RuntimeWarning", str(HERE / "torchserve_client.py"), str(stubs)]
    done = subprocess.run(script, check=False, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.endswith("side by side\n")


@pytest.mark.parametrize("first", ["theirs", "ours"])
def test_either_order(stubs, first):
    """Whoever is imported first, the other set of stubs imports as well."""
    imports = ["import inference_pb2, management_pb2", "from actorserve.proto import inference_pb2, management_pb2"]
    lines = imports if first == "theirs" else imports[::-1]
    code = f"import sys; sys.path.insert(0, {str(stubs)!r})\n" + "\n".join(lines)
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)
