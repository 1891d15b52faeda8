"""Stubs of grpc.testing, made when the tests begin, and TestService on a port of its own."""

import importlib
import subprocess
import sys
import sysconfig
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from actorserve.services.transport.server import GrpcServer

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="session", autouse=True)
def stubs(tmp_path_factory):
    """`interop_pb2`, `interop_pb2_grpc` (grpcio's) and `interop_grpc` (grpclib's), on sys.path; their folder."""
    folder = tmp_path_factory.mktemp("stubs")
    plugin = Path(sysconfig.get_path("scripts")) / "protoc-gen-grpclib_python"
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{HERE}", f"--plugin={plugin}"]
    command += [f"--{kind}_out={folder}" for kind in ("python", "grpc_python", "grpclib_python")]
    subprocess.run([*command, "interop.proto"], check=True, capture_output=True, timeout=60)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture
def interop_server(stubs):
    """Call it for a context that serves TestService over our transport, and gives the port."""
    service = importlib.import_module("interop_service").TestService()  # it needs the stubs

    @asynccontextmanager
    async def serve():
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with trio.open_nursery() as nursery:
            await nursery.start(GrpcServer([service]).serve, listeners)
            yield listeners[0].socket.getsockname()[1]
            nursery.cancel_scope.cancel()

    return serve
