"""What the tests of users' own schemas share: the generated code of a proto, and the servers to compare with."""

import json
import os
import sys

import pytest
from rpc_rig import HERE, generate, started


@pytest.fixture(scope="session")
def generated(tmp_path_factory):
    """The folder with diff_pb2, diff_pb2_grpc and diff_grpc; on this process's sys.path too."""
    folder = tmp_path_factory.mktemp("generated")
    generate(HERE / "diff.proto", folder)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture(scope="session")
def environment(generated):
    """The environment in which the classes of this folder can be imported."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join((str(generated), str(HERE)))}


@pytest.fixture(scope="session")
def reference(environment):
    """Addresses of the servers that the classes were written for, by kind."""
    process, line = started([sys.executable, str(HERE / "reference_servers.py")], environment)
    try:
        yield {name: f"127.0.0.1:{port}" for name, port in json.loads(line).items()}
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
