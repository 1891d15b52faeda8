"""TLS, client certificates, tokens, Unix sockets and interceptors: the whole server, by clients not written here."""

from __future__ import annotations

import functools
import hashlib
import socket
import ssl
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import grpc
import pytest
import trio
import trustme
from grpclib.const import Cardinality, Handler, Status
from grpclib.events import RecvRequest, SendMessage, listen
from grpclib.exceptions import GRPCError

from actorserve import config, testing
from actorserve.config_listener import Listener
from actorserve.errors import ConfigError, StartFailed
from actorserve.proto.inference_grpc import InferenceAPIsServiceStub
from actorserve.proto.inference_pb2 import PredictionResponse, PredictionsRequest
from actorserve.server import Server
from actorserve.services.access import service_of
from actorserve.services.tokens import Tokens, read_tokens
from actorserve.services.transport.interceptors import compose
from actorserve.services.transport.limits import Limits

SERVICE = "/org.pytorch.serve.grpc.inference.InferenceAPIsService"
HEALTH = "/grpc.health.v1.Health/Check"
MODELS = {"echo": {"handler": "actorserve.handlers.echo:Echo"}, "other": {"handler": "actorserve.handlers.echo:Echo"}}


def ask(channel: grpc.Channel, model: str = "echo", metadata: Any = ()) -> bytes:
    call = channel.unary_unary(
        f"{SERVICE}/Predictions",
        request_serializer=PredictionsRequest.SerializeToString,
        response_deserializer=PredictionResponse.FromString,
    )
    return call(
        PredictionsRequest(model_name=model, input={"data": b"hello"}), timeout=20, metadata=metadata
    ).prediction


def refused(channel: grpc.Channel, **more: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        ask(channel, **more)
    return caught.value.code()


async def in_thread(function: Callable[..., Any], *args: Any, **more: Any) -> Any:
    return await trio.to_thread.run_sync(functools.partial(function, *args, **more))


def content(**listener: Any) -> dict[str, Any]:
    services = ["inference", "health", "reflection"]
    return {
        "listeners": {"inference": {"address": "127.0.0.1:0", "services": services, **listener}},
        "models": MODELS,
    }


class Authority:
    """A CA of the test's own, and PEM files that it issued."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = trustme.CA()
        self.ca.cert_pem.write_to_path(str(folder / "ca.pem"))
        self.issue("localhost")

    def issue(self, name: str) -> None:
        """Write a new server certificate and key."""
        issued = self.ca.issue_cert(name, "127.0.0.1")
        issued.private_key_pem.write_to_path(str(self.folder / "key.pem"))
        issued.cert_chain_pems[0].write_to_path(str(self.folder / "cert.pem"))

    def tls(self, **more: str) -> dict[str, str]:
        return {"certificate": str(self.folder / "cert.pem"), "key": str(self.folder / "key.pem"), **more}

    def channel(self, address: str, client: trustme.LeafCert | None = None) -> grpc.Channel:
        key = client.private_key_pem.bytes() if client else None
        chain = client.cert_chain_pems[0].bytes() if client else None
        credentials = grpc.ssl_channel_credentials(self.ca.cert_pem.bytes(), key, chain)
        return grpc.secure_channel(address, credentials)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def served_certificate(address: str) -> bytes:
    host, _, port = address.rpartition(":")
    return ssl.get_server_certificate((host, int(port))).encode()


async def test_tls_and_renewal(authority):
    """A grpcio client is answered over TLS; a renewed certificate serves the next connection without a restart."""
    async with testing.serve(content(tls=authority.tls())) as app:
        address = app.address("inference")
        with authority.channel(address) as channel:
            assert await in_thread(ask, channel) == b"hello"
        before = await in_thread(served_certificate, address)
        authority.issue("localhost")
        with trio.fail_after(20):
            while await in_thread(served_certificate, address) == before:
                await trio.sleep(0.2)
        with authority.channel(address) as channel:
            assert await in_thread(ask, channel) == b"hello"


async def test_broken_renewal_keeps_the_old_certificate(authority):
    """Files that do not load leave the old certificate in use."""
    async with testing.serve(content(tls=authority.tls())) as app:
        (authority.folder / "cert.pem").write_text("not a certificate")
        for _ in range(2):
            with authority.channel(app.address("inference")) as channel:
                assert await in_thread(ask, channel) == b"hello"


async def test_plain_client_does_not_hurt_tls(authority):
    """A client without TLS is closed, and the next one with TLS is answered."""
    async with testing.serve(content(tls=authority.tls())) as app:
        address = app.address("inference")
        with grpc.insecure_channel(address) as channel:
            assert await in_thread(refused, channel) is grpc.StatusCode.UNAVAILABLE
        with authority.channel(address) as channel:
            assert await in_thread(ask, channel) == b"hello"


class WhoService:
    """Answers who its caller is."""

    async def who(self, stream: Any) -> None:
        await stream.recv_message()
        identity = stream.identity
        said = f"{identity.common_name}|{','.join(identity.names)}" if identity else "nobody"
        await stream.send_message(PredictionResponse(prediction=said.encode()))

    def __mapping__(self) -> dict[str, Handler]:
        kind = Cardinality.UNARY_UNARY
        return {"/test.Who/Who": Handler(self.who, kind, PredictionsRequest, PredictionResponse)}


async def test_mutual_tls_and_identity(authority):
    """With client_ca a client needs a certificate, and a service method sees whose it is."""
    settings = content(tls=authority.tls(client_ca=str(authority.folder / "ca.pem")))
    async with testing.serve(settings, services=[WhoService()]) as app:
        address = app.address("inference")
        with authority.channel(address) as channel:
            assert await in_thread(refused, channel) is grpc.StatusCode.UNAVAILABLE
        with authority.channel(address, authority.ca.issue_cert("alice.example", common_name="alice")) as channel:
            call = channel.unary_unary("/test.Who/Who")
            said = PredictionResponse.FromString(await in_thread(call, b"", timeout=20))
            assert said.prediction == b"alice|DNS:alice.example"


TOKENS = """
[tokens.all]
sha256 = "{all}"

[tokens.echo]
sha256 = "{echo}"
services = ["inference"]
models = ["echo"]

[tokens.probe]
sha256 = "{probe}"
services = ["health"]

[tokens.batch]
sha256 = "{batch}"
max_priority = 3
"""


@pytest.fixture
def tokens_file(tmp_path: Path) -> Path:
    file = tmp_path / "tokens.toml"
    digests = {
        name: hashlib.sha256(f"secret-{name}".encode()).hexdigest() for name in ("all", "echo", "probe", "batch")
    }
    file.write_text(TOKENS.format(**digests))
    return file


def bearer(name: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer secret-{name}")]


async def test_tokens(tokens_file):
    """A call needs a known token, that allows its service and its model; auth_exempt alone needs none."""
    settings = content(tokens_file=str(tokens_file), auth_exempt=["health"])
    async with testing.serve(settings) as app:
        with grpc.insecure_channel(app.address("inference")) as channel:
            code = grpc.StatusCode
            assert await in_thread(refused, channel) is code.UNAUTHENTICATED
            assert await in_thread(refused, channel, metadata=bearer("wrong")) is code.UNAUTHENTICATED
            assert await in_thread(refused, channel, metadata=bearer("probe")) is code.PERMISSION_DENIED
            assert await in_thread(refused, channel, model="other", metadata=bearer("echo")) is code.PERMISSION_DENIED
            assert await in_thread(ask, channel, metadata=bearer("echo")) == b"hello"
            assert await in_thread(ask, channel, model="other", metadata=bearer("all")) == b"hello"
            assert await in_thread(channel.unary_unary(HEALTH), b"", timeout=20)


async def test_token_is_checked_before_any_message(tokens_file):
    """A refused call's message is never read: one that could not be parsed is UNAUTHENTICATED, not INVALID_ARGUMENT."""
    async with testing.serve(content(tokens_file=str(tokens_file))) as app:
        with grpc.insecure_channel(app.address("inference")) as channel:
            with pytest.raises(grpc.RpcError) as caught:
                await in_thread(channel.unary_unary(f"{SERVICE}/Predictions"), b"\xff\xff\xff", timeout=20)
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


class Seeing(testing.ScriptedWorker):
    """Answers with the priority that its metadata has; it never sees a token."""

    async def infer(self, items):
        assert all("authorization" not in item.metadata for item in items)
        return [str(item.metadata.get("priority")).encode() for item in items]


async def test_token_caps_the_priority(tokens_file, autojump_clock):
    """A call may ask for any priority and gets what its token allows; what is no priority is INVALID_ARGUMENT. The
    token itself ends with the listener: no handler sees it.
    """
    workers = testing.ScriptedWorkers(Seeing)
    async with testing.serve(content(tokens_file=str(tokens_file)), workers=workers) as app, app.channel() as channel:
        stub = InferenceAPIsServiceStub(channel)

        async def served(token: str, **priority: str) -> bytes:
            metadata = {**dict(bearer(token)), **priority}
            return (await stub.Predictions(PredictionsRequest(model_name="echo"), metadata=metadata)).prediction

        assert await served("batch") == b"None"
        assert await served("batch", priority="2") == b"2"
        assert await served("batch", priority="9") == b"3"
        assert await served("all", priority="9") == b"9"
        with pytest.raises(GRPCError) as wrong:
            await served("batch", priority="high")
        assert wrong.value.status is Status.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", "must hold [tokens.NAME] tables"),
        ("[tokens.a]\nsha256 = 'abc'", "not 64 hexadecimal digits"),
        ("[tokens.a]\nsecret = 'abc'", "may hold"),
        ("[tokens.a]\nsha256 = '" + "0" * 64 + "'\nmodels = 'digits'", "not a list"),
        (
            "[tokens.a]\nsha256 = '" + "0" * 64 + "'\nmax_priority = 10",
            "max_priority is not a whole number from 0 to 9",
        ),
        ("[tokens.a]\nsha256 = '" + "0" * 64 + "'\nmax_priority = true", "max_priority is not a whole number"),
        ("no toml", "is not TOML"),
    ],
)
def test_broken_tokens_file(tmp_path, text, wrong):
    """A tokens file that says nothing, or nonsense, is refused with what would be right."""
    file = tmp_path / "tokens.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match="tokens_file") as caught:
        read_tokens(file)
    assert wrong in str(caught.value)


def test_token_scheme():
    """Only the bearer scheme counts, in any case; the empty token is nobody's."""
    tokens = Tokens([])
    assert tokens.find("Bearer x") is None
    assert tokens.find("") is None


def test_service_names():
    """A method's service is known by the config's name, others by their full name."""
    assert [service_of(f"{SERVICE}/Ping"), service_of("/my.Own/Call")] == ["inference", "my.Own"]


@pytest.mark.parametrize("missing", ["tls", "tokens_file"])
def test_off_loopback_needs_tls_and_tokens(missing):
    """An address off loopback is refused without TLS, and without tokens, unless insecure says so."""
    listener = {"tls": {"certificate": "c", "key": "k"}, "tokens_file": "t"}
    del listener[missing]
    given = {"listeners": {"a": {"address": "0.0.0.0:1", "services": ["inference"], **listener}}}
    with pytest.raises(ConfigError, match=missing):
        config.parse(given, folder=Path.cwd())
    given["listeners"]["a"]["insecure"] = True
    assert config.parse(given, folder=Path.cwd())


async def test_wrong_certificate_is_one_line(tmp_path):
    """A certificate that is not there ends the start with the file's name."""
    with pytest.raises(StartFailed, match=r"cert\.pem"):
        async with testing.serve(content(tls={"certificate": str(tmp_path / "cert.pem"), "key": "k"})):
            pass


async def test_unix_socket(tmp_path):
    """A Unix socket is served, to its owner only, and its file goes with the server; a stale file is replaced."""
    path = tmp_path / "socket"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    async with testing.serve(content(address=f"unix:{path}")) as app:
        assert path.stat().st_mode & 0o777 == 0o600
        with grpc.insecure_channel(app.address("inference")) as channel:
            assert await in_thread(ask, channel) == b"hello"
    assert not path.exists()


async def test_several_addresses_and_reuse_port():
    """Several addresses of one listener answer; with reuse_port two servers share a port."""
    async with testing.serve(content(reuse_port=True)) as app:
        address = app.address("inference")
        settings = config.parse(content(reuse_port=True, address=[address, "[::1]:0"]), folder=Path.cwd())
        second = Server(settings, spawner=testing.ScriptedWorkers())
        await second.open()
        bound = second.bound[0].addresses
        assert bound[0] == address
        assert bound[1].startswith("[::1]:")
        for listener in second._listeners["inference"]:
            await listener.aclose()


def test_interceptors_run_outside_in():
    """The first interceptor is the outermost, and one that does not proceed keeps the method from running."""
    seen: list[str] = []

    def named(name: str) -> Any:
        async def interceptor(call: Any, proceed: Any) -> None:
            seen.append(name)
            if name != "wall":
                await proceed(call)
            seen.append(f"/{name}")

        return interceptor

    trio.run(compose([named("a"), named("b"), named("wall")]), None)
    assert seen == ["a", "b", "wall", "/wall", "/b", "/a"]


async def test_grpclib_events():
    """Grpclib's own events work on our server: a listener sees each request and may change each message."""
    async with testing.serve(content()) as app:
        seen: list[str] = []

        async def on_request(event: RecvRequest) -> None:
            seen.append(event.method_name)

        async def on_message(event: SendMessage) -> None:
            event.message = PredictionResponse(prediction=b"changed")

        listen(app.server.grpc["inference"], RecvRequest, on_request)
        listen(app.server.grpc["inference"], SendMessage, on_message)
        with grpc.insecure_channel(app.address("inference")) as channel:
            assert await in_thread(ask, channel) == b"changed"
        assert seen == [f"{SERVICE}/Predictions"]


def test_bounds_have_one_set_of_defaults() -> None:
    """Every bound of the transport is a config key of the same name and default."""
    bounds = {field.name: field.default for field in fields(Limits)}
    assert {name: Listener.model_fields[name].default for name in bounds} == bounds
