"""TLS in both roles: health and reflection, our own channel against grpcio's server, half-open TLS."""

from __future__ import annotations

import contextlib
import gc
import json
import ssl
import subprocess
import sysconfig
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import trio
import trustme
from google.protobuf import descriptor_pool
from google.protobuf.wrappers_pb2 import BytesValue
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpclib.client import UnaryUnaryMethod
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from actorserve import testing
from actorserve.client import Channel
from actorserve.services.transport import frames as f
from actorserve.services.transport.server import GrpcServer, Limits
from actorserve.services.transport.tls import Certificates, Files

INFERENCE = "org.pytorch.serve.grpc.inference.InferenceAPIsService"
CROWD = 200
HANDSHAKE_S = 1.0


@pytest.fixture
def ca(tmp_path: Path) -> trustme.CA:
    """A private CA, and in the test's folder its certificate and what it issued to localhost."""
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    ca.issue_cert("localhost", "127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "server.pem"))
    return ca


def served(folder: Path, **more: Any) -> dict[str, Any]:
    """Give the config of a TLS listener."""
    pem = str(folder / "server.pem")
    listener = {"address": "127.0.0.1:0", "services": ["inference", "health", "reflection"], **more}
    return {
        "listeners": {"inference": {**listener, "tls": {"certificate": pem, "key": pem}}},
        "models": {"echo": {"handler": "actorserve.handlers.echo:Echo"}},
    }


# --- health and reflection over TLS -------------------------------------------------------------


def probe(target: str, root: bytes) -> tuple[int, list[str], bool]:
    """Give health of the model, the services by reflection, and whether a method's types can be learned of."""
    with grpc.secure_channel(target, grpc.ssl_channel_credentials(root)) as channel:
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service="echo"), timeout=20)
        database = ProtoReflectionDescriptorDatabase(channel)
        service = descriptor_pool.DescriptorPool(database).FindServiceByName(INFERENCE)
        return health.status, list(database.get_services()), "Predictions" in service.methods_by_name


async def test_health_and_reflection_over_tls_by_grpcios_clients(ca, tmp_path):
    """Over TLS with a private CA, grpcio's own health and reflection clients get their answers."""
    async with testing.serve(served(tmp_path)) as app:
        health, services, found = await trio.to_thread.run_sync(probe, app.address("inference"), ca.cert_pem.bytes())

    assert health == health_pb2.HealthCheckResponse.SERVING
    assert {INFERENCE, "grpc.health.v1.Health"} <= set(services)
    assert found


async def test_health_and_reflection_over_tls_by_grpcurl(ca, tmp_path):
    """Grpcurl with the CA lists by reflection and calls; without the CA it is told of an unknown authority."""
    grpcurl = str(Path(sysconfig.get_path("scripts")) / "grpcurl")

    async def run(*arguments: str) -> str:
        done = await trio.run_process([grpcurl, *arguments], capture_stdout=True, stderr=subprocess.STDOUT, check=False)
        return done.stdout.decode()

    async with testing.serve(served(tmp_path)) as app:
        target, trusted = app.address("inference"), ("-cacert", str(tmp_path / "ca.pem"))
        listed = await run(*trusted, target, "list")
        health = await run(*trusted, "-d", '{"service": "echo"}', target, "grpc.health.v1.Health/Check")
        refused = await run(target, "list")

    assert INFERENCE in listed.split()
    assert json.loads(health) == {"status": "SERVING"}
    assert "unknown authority" in refused


# --- our channel against grpcio's server --------------------------------------------------------


def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
    """Answer who the client is, by its certificate."""
    name = context.auth_context().get("x509_common_name", [b"nobody"])[0]
    return BytesValue(value=name + b":" + BytesValue.FromString(request).value).SerializeToString()


@contextlib.contextmanager
def grpcios_server(folder: Path, client_ca: bytes | None) -> Iterator[str]:
    """Give the target of grpcio's own server with TLS, and mTLS where a CA of clients is given."""
    pem = (folder / "server.pem").read_bytes()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    methods = {"Ask": grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Who", methods)])
    credentials = grpc.ssl_server_credentials([(pem, pem)], client_ca, require_client_auth=client_ca is not None)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        yield f"localhost:{port}"
    finally:
        server.stop(None).wait()


async def ask(target: str, context: ssl.SSLContext) -> bytes:
    """Call grpcio's server with our channel."""
    async with Channel(target, tls=context) as channel:
        method = UnaryUnaryMethod(channel, "/test.Who/Ask", BytesValue, BytesValue)
        return (await method(BytesValue(value=b"x" * 100_000), timeout=20)).value


def trusting(ca: trustme.CA | None) -> ssl.SSLContext:
    """Give a client's context that trusts this CA."""
    context = ssl.create_default_context()
    if ca is not None:
        ca.configure_trust(context)
    return context


async def test_our_channel_over_tls_to_grpcios_server(ca, tmp_path):
    """A server whose CA is trusted is called; one whose CA is not is UNAVAILABLE, and the reason is told."""
    with grpcios_server(tmp_path, None) as target:
        assert await ask(target, trusting(ca)) == b"nobody:" + b"x" * 100_000
        with pytest.raises(GRPCError) as caught:
            await ask(target, trusting(None))

    assert caught.value.status is Status.UNAVAILABLE
    assert "certificate" in str(caught.value.message).lower()


async def test_our_channel_over_mutual_tls_to_grpcios_server(ca, tmp_path):
    """Grpcio's server sees our client's certificate; without one our client is refused."""
    with grpcios_server(tmp_path, ca.cert_pem.bytes()) as target:
        context = trusting(ca)
        ca.issue_cert("alice.example", common_name="alice").configure_cert(context)
        assert await ask(target, context) == b"alice:" + b"x" * 100_000
        with pytest.raises(GRPCError) as caught:
            await ask(target, trusting(ca))

    assert caught.value.status is Status.UNAVAILABLE


# --- half-open TLS ------------------------------------------------------------------------------


def hello() -> bytes:
    """Give a TLS client's first octets."""
    context, sent = ssl.create_default_context(), ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), sent, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return sent.read()


async def ending(stream: trio.SocketStream) -> bytes:
    """Give what comes next; nothing where the stream has ended, or was reset."""
    try:
        return await stream.receive_some(100)
    except trio.BrokenResourceError:
        return b""


@pytest.mark.parametrize("share", [0.0, 0.5], ids=["nothing", "half a ClientHello"])
async def test_half_open_tls_is_closed_in_time(ca, tmp_path, share):
    """Hundreds that begin TLS and go no further are closed by the handshake's timeout; others are served meanwhile."""
    said = hello()
    async with testing.serve(served(tmp_path, handshake_timeout_s=HANDSHAKE_S)) as app:
        host, _, port = app.address("inference").rpartition(":")
        before = psutil.Process().memory_info().rss
        streams = [await trio.open_tcp_stream(host, int(port)) for _ in range(CROWD)]
        for stream in streams:
            await stream.send_all(said[: int(share * len(said))])
        health, _, _ = await trio.to_thread.run_sync(probe, app.address("inference"), ca.cert_pem.bytes())
        grown = psutil.Process().memory_info().rss - before
        with trio.fail_after(30):
            ends = [await ending(stream) for stream in streams]
        for stream in streams:
            await stream.aclose()
        closed = app.server.grpc["inference"].statistics().closed

    assert health == health_pb2.HealthCheckResponse.SERVING
    assert ends == [b""] * CROWD
    assert closed["handshake"] >= CROWD
    assert grown < 30_000_000  # 128 that have begun, at 165 KB


async def test_the_oldest_of_too_many_handshakes_is_closed(ca, tmp_path):
    """Above max_handshakes the one that began first goes, at once; who has said nothing counts for nothing."""
    said = hello()
    async with testing.serve(served(tmp_path, max_handshakes=3)) as app, contextlib.AsyncExitStack() as stack:
        host, _, port = app.address("inference").rpartition(":")
        silent, *begun = [
            await stack.enter_async_context(await trio.open_tcp_stream(host, int(port))) for _ in range(6)
        ]
        for stream in begun[:3]:
            await stream.send_all(said[:50])
            await trio.sleep(0.1)  # so that they begin in this order
        await begun[3].send_all(said[:50])
        with trio.fail_after(30):
            assert await ending(begun[0]) == b""
        health, _, _ = await trio.to_thread.run_sync(probe, app.address("inference"), ca.cert_pem.bytes())
        with trio.fail_after(30):
            assert await ending(begun[1]) == b""
        with trio.move_on_after(0.2) as waited:
            await ending(silent)

    assert health == health_pb2.HealthCheckResponse.SERVING
    assert waited.cancelled_caught


async def test_what_a_handshake_took_is_free_at_once(ca, tmp_path, nursery):
    """Failed, cut by time or served: a TLS connection that has ended leaves nothing for the collector."""
    pem = tmp_path / "server.pem"
    server = GrpcServer([], limits=Limits(handshake_timeout_s=2), certificates=Certificates(Files(pem, pem)))
    (listener,) = await nursery.start(server.serve, await trio.open_tcp_listeners(0, host="127.0.0.1"))
    port = listener.socket.getsockname()[1]
    context = trusting(ca)
    context.set_alpn_protocols(["h2"])
    gc.collect()
    gc.disable()
    try:
        before = sum(type(one) is ssl.SSLObject for one in gc.get_objects())
        for said in (b"\x16", b"GET / HTTP/1.1\r\n\r\n", hello()):
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            await stream.send_all(said)
            while await ending(stream):
                pass
            await trio.aclose_forcefully(stream)
        secure = await trio.open_ssl_over_tcp_stream("localhost", port, https_compatible=True, ssl_context=context)
        await secure.do_handshake()
        await trio.aclose_forcefully(secure)
        vars(secure).clear()
        del secure
        while server.statistics().closed != {"handshake": 3, "peer": 1}:
            await trio.sleep(0.01)
        after = sum(type(one) is ssl.SSLObject for one in gc.get_objects())
    finally:
        gc.enable()
    nursery.cancel_scope.cancel()

    assert after <= before


async def test_tls_without_a_preface_is_told_and_closed(ca, tmp_path):
    """Who shakes hands and then says nothing gets GOAWAY SETTINGS_TIMEOUT, through TLS."""
    context = trusting(ca)
    context.set_alpn_protocols(["h2"])
    async with testing.serve(served(tmp_path, handshake_timeout_s=HANDSHAKE_S)) as app:
        port = int(app.address("inference").rpartition(":")[2])
        stream = await trio.open_ssl_over_tcp_stream("localhost", port, https_compatible=True, ssl_context=context)
        data = bytearray()
        with trio.fail_after(30), contextlib.suppress(trio.BrokenResourceError):
            while part := await stream.receive_some(1000):
                data += part
        await trio.aclose_forcefully(stream)

    goaway = data[data.rindex(b"no SETTINGS in time") - f.HEADER_SIZE - 8 :]
    assert goaway[3] == f.GOAWAY
    assert f.TWO_LONGS.unpack_from(goaway, f.HEADER_SIZE)[1] == f.SETTINGS_TIMEOUT


async def test_goaway_gets_through_tls_against_a_flood(ca, tmp_path):
    """Who is sent away amid its flood reads GOAWAY all the same: the socket is not closed over what it has sent."""
    context = trusting(ca)
    context.set_alpn_protocols(["h2"])
    flood = f.PREFACE + f.encode_settings([]) + f.encode(f.PING, 0, 0, bytes(8)) * 12_000
    async with testing.serve(served(tmp_path)) as app:
        port = int(app.address("inference").rpartition(":")[2])
        for _ in range(20):
            stream = await trio.open_ssl_over_tcp_stream("localhost", port, https_compatible=True, ssl_context=context)
            data = bytearray()
            with trio.fail_after(30), contextlib.suppress(trio.BrokenResourceError):
                await stream.send_all(flood)
                while part := await stream.receive_some(65_536):
                    data += part
            await trio.aclose_forcefully(stream)
            assert b"too_many_pings" in data
