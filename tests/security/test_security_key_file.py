"""key_file.json: its layout, its mode, who gets in with which key, and renewal in virtual time."""

from __future__ import annotations

import datetime as dt
import itertools
import json
from pathlib import Path
from typing import Any

import grpc
import pytest
import trio
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from structlog.testing import capture_logs

from actorserve import config, testing
from actorserve.errors import ConfigError, StartFailed
from actorserve.proto.inference_grpc import InferenceAPIsServiceStub
from actorserve.proto.inference_pb2 import PredictionsRequest
from actorserve.proto.management_grpc import ManagementAPIsServiceStub
from actorserve.proto.management_pb2 import ListModelsRequest, RegisterModelRequest, UnregisterModelRequest
from actorserve.services.key_file import KINDS, Door, KeyFile, replace_privately

MINUTE_S = 60.0
BEGAN = dt.datetime(2026, 1, 1, tzinfo=dt.UTC).timestamp()


def keys_of(path: Path) -> dict[str, str]:
    """The keys in the file by kind."""
    return {kind: entry["key"] for kind, entry in json.loads(path.read_text()).items()}


def expiry_of(path: Path) -> float:
    """When the file says that its keys expire, in seconds since 1970."""
    times = {json.loads(path.read_text())[kind]["expiration time"] for kind in KINDS}
    (text,) = times
    assert text.endswith("Z")
    return dt.datetime.fromisoformat(text).timestamp()


def virtual(path: Path, *, expiration_min: float = 60, overlap_min: float = 60, **more: Any) -> KeyFile:
    """A key file whose wall clock is trio's."""
    began = trio.current_time()
    return KeyFile(
        path,
        expiration_s=expiration_min * MINUTE_S,
        overlap_s=overlap_min * MINUTE_S,
        now=lambda: BEGAN + trio.current_time() - began,
        **more,
    )


def lets_in(keys: KeyFile, kind: str, key: str) -> bool:
    token = Door(keys, [kind]).find(f"Bearer {key}")
    return token is not None and token.name == kind


async def test_layout(tmp_path, autojump_clock):
    """The file has TorchServe's layout and mode 0600; its three keys differ, its times are the keys' expiry."""
    path = tmp_path / "key_file.json"
    path.write_text("of an earlier server")
    path.chmod(0o644)
    virtual(path).begin()
    content = json.loads(path.read_text())
    assert {kind: list(entry) for kind, entry in content.items()} == {
        "management": ["key", "expiration time"],
        "inference": ["key", "expiration time"],
        "API": ["key"],
    }
    assert path.stat().st_mode & 0o777 == 0o600
    assert len({*keys_of(path).values()}) == 3
    assert min(map(len, keys_of(path).values())) >= 8
    assert expiry_of(path) == BEGAN + 60 * MINUTE_S
    assert [entry.name for entry in tmp_path.iterdir()] == ["key_file.json"]


async def test_renewal(tmp_path, autojump_clock):
    """New keys replace the old ones five minutes before these expire, and both count for `overlap_min` more; each
    renewal is one line in the log, without a key.
    """
    path = tmp_path / "key_file.json"
    keys = virtual(path, overlap_min=20)
    keys.begin()
    first = keys_of(path)
    with capture_logs() as lines:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keys.run)
            await trio.sleep(54.9 * MINUTE_S)
            assert keys_of(path) == first
            await trio.sleep(0.2 * MINUTE_S)
            second = keys_of(path)
            assert {*second.values()}.isdisjoint(first.values())
            assert expiry_of(path) == BEGAN + 115 * MINUTE_S
            assert path.stat().st_mode & 0o777 == 0o600
            await trio.sleep(19.8 * MINUTE_S)
            for kind in KINDS:
                assert lets_in(keys, kind, first[kind])
                assert lets_in(keys, kind, second[kind])
            await trio.sleep(0.2 * MINUTE_S)
            for kind in KINDS:
                assert not lets_in(keys, kind, first[kind])
                assert lets_in(keys, kind, second[kind])
            await trio.sleep(40 * MINUTE_S)
            third = keys_of(path)
            assert third != second
            nursery.cancel_scope.cancel()
    assert [line["event"] for line in lines] == ["keys renewed", "keys renewed"]
    assert not [key for key in (*first.values(), *second.values(), *third.values()) if key in repr(lines)]


async def test_old_keys_keep_their_promise(tmp_path, autojump_clock):
    """With no overlap at all, replaced keys still count until the time that their file said."""
    path = tmp_path / "key_file.json"
    keys = virtual(path, overlap_min=0)
    keys.begin()
    first = keys_of(path)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keys.run)
        await trio.sleep(59.9 * MINUTE_S)
        assert keys_of(path) != first
        assert lets_in(keys, "inference", first["inference"])
        await trio.sleep(0.2 * MINUTE_S)
        assert not lets_in(keys, "inference", first["inference"])
        nursery.cancel_scope.cancel()


async def test_short_lives(tmp_path, autojump_clock):
    """Keys that live for less than ten minutes are renewed at half of their life."""
    path = tmp_path / "key_file.json"
    keys = virtual(path, expiration_min=1)
    keys.begin()
    seen = [keys_of(path)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keys.run)
        for _ in range(3):
            await trio.sleep(31)
            seen.append(keys_of(path))
        nursery.cancel_scope.cancel()
    assert all(one != other for one, other in itertools.pairwise(seen))


async def test_never(tmp_path, autojump_clock):
    """token_expiration_min = 0: the keys stay, and the file names no time."""
    path = tmp_path / "key_file.json"
    keys = virtual(path, expiration_min=0)
    keys.begin()
    first = path.read_text()
    assert {json.loads(first)[kind]["expiration time"] for kind in KINDS} == {None}
    with trio.move_on_after(1e7):
        await keys.run()
    assert path.read_text() == first
    assert lets_in(keys, "inference", keys_of(path)["inference"])


async def test_a_file_that_cannot_be_written(tmp_path, autojump_clock):
    """Where the file cannot be written at its time, its keys go on, one error says so, and it is tried again."""
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "key_file.json"
    keys = virtual(path, overlap_min=1)
    keys.begin()
    first = keys_of(path)
    moved = folder.rename(tmp_path / "elsewhere")
    with capture_logs() as lines:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keys.run)
            await trio.sleep(70.5 * MINUTE_S)
            assert lets_in(keys, "inference", first["inference"])
            assert {line["event"] for line in lines} == {"keys not renewed"}
            moved.rename(folder)
            await trio.sleep(MINUTE_S)
            assert keys_of(path) != first
            nursery.cancel_scope.cancel()
    assert lines[-1]["event"] == "keys renewed"


async def test_start_without_a_place(tmp_path):
    """A file that cannot be written ends the start, and is named; a failed write leaves nothing beside it."""
    keys = KeyFile(tmp_path / "no" / "key_file.json", expiration_s=0, overlap_s=0)
    with pytest.raises(StartFailed, match="key_file"):
        keys.begin()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(OSError, match="directory"):
        replace_privately(tmp_path / "taken", b"x")
    assert [entry.name for entry in tmp_path.iterdir()] == ["taken"]


@pytest.mark.parametrize("header", ["bearer {}", "Bearer{}", "{}", "Basic {}", "Bearer {} x", "Bearer ", ""])
async def test_header(tmp_path, header):
    """The header is `Bearer KEY`, with TorchServe's case and nothing after it."""
    path = tmp_path / "key_file.json"
    keys = KeyFile(path, expiration_s=60, overlap_s=60)
    keys.begin()
    door, key = Door(keys, ["inference"]), keys_of(path)["inference"]
    assert door.find(f"Bearer  {key}") is not None
    assert door.find(header.format(key)) is None


def test_removed_with_its_server(tmp_path):
    """A server takes its file along when it ends, and leaves one that another has written since."""
    path = tmp_path / "key_file.json"
    ours, others = (KeyFile(path, expiration_s=60, overlap_s=60) for _ in range(2))
    ours.begin()
    others.begin()
    ours.remove()
    assert path.exists()
    others.remove()
    assert not path.exists()


def content(folder: Path, **more: Any) -> dict[str, Any]:
    keys = {"key_file": str(folder / "key_file.json"), **more}
    return {
        "listeners": {
            "inference": {"address": "127.0.0.1:0", "services": ["inference", "health"], **keys},
            "management": {"address": "127.0.0.1:0", "services": ["management", "health"], **keys},
        },
        "models": {"echo": {"handler": "actorserve.handlers.echo:Echo"}},
    }


def code_of(address: str, method: str, request: bytes, key: str = "") -> grpc.StatusCode:
    """The status of a call by plain grpcio."""
    metadata = [("authorization", f"Bearer {key}")] if key else []
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(method)
        try:
            call(request, timeout=20, metadata=metadata)
        except grpc.RpcError as error:
            return error.code()
    return grpc.StatusCode.OK


PREDICT = "/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions"
LIST = "/org.pytorch.serve.grpc.management.ManagementAPIsService/ListModels"
HEALTH = "/grpc.health.v1.Health/Check"


async def test_each_listener_its_key(tmp_path):
    """By a client not written here: each listener takes the key of what it serves and no other, the API key opens
    nothing, and a refused call's message is never read.
    """
    request = PredictionsRequest(model_name="echo", input={"data": b"hello"}).SerializeToString()
    expected = {
        "inference": {"": 16, "inference": 0, "management": 16, "API": 16, "wrong": 16},
        "management": {"": 16, "inference": 16, "management": 0, "API": 16, "wrong": 16},
    }
    async with testing.serve(content(tmp_path)) as app:
        keys = {**keys_of(tmp_path / "key_file.json"), "": "", "wrong": "wrong"}
        for listener, method, message in (("inference", PREDICT, request), ("management", LIST, b"")):
            for kind, code in expected[listener].items():
                found = await trio.to_thread.run_sync(code_of, app.address(listener), method, message, keys[kind])
                assert (listener, kind, found.value[0]) == (listener, kind, code)
        broken = await trio.to_thread.run_sync(code_of, app.address(), PREDICT, b"\xff\xff\xff")
        assert broken is grpc.StatusCode.UNAUTHENTICATED
        assert await trio.to_thread.run_sync(code_of, app.address(), HEALTH, b"") is grpc.StatusCode.UNAUTHENTICATED
    assert not (tmp_path / "key_file.json").exists()


async def test_both_on_one_listener(tmp_path):
    """Where one listener serves both, the inference key does not open management, nor the other way round; both open
    what is served beside them.
    """
    request = PredictionsRequest(model_name="echo", input={"data": b"hello"}).SerializeToString()
    key_file = str(tmp_path / "key_file.json")
    both = {"address": "127.0.0.1:0", "services": ["inference", "management", "health"], "key_file": key_file}
    async with testing.serve({**content(tmp_path), "listeners": {"both": both}}) as app:
        keys = keys_of(tmp_path / "key_file.json")
        for method, message, opens in ((PREDICT, request, "inference"), (LIST, b"", "management"), (HEALTH, b"", None)):
            for kind in ("inference", "management"):
                found = await trio.to_thread.run_sync(code_of, app.address("both"), method, message, keys[kind])
                assert (method, kind, found.value[0]) == (method, kind, 0 if opens in (kind, None) else 7)


async def test_only_auth_exempt_opens(tmp_path):
    """Health asks for a key like everything else, unless auth_exempt names it."""
    async with testing.serve(content(tmp_path, auth_exempt=["health"])) as app:
        assert await trio.to_thread.run_sync(code_of, app.address(), HEALTH, b"") is grpc.StatusCode.OK
        assert await trio.to_thread.run_sync(code_of, app.address(), PREDICT, b"") is grpc.StatusCode.UNAUTHENTICATED


async def test_a_server_renews(tmp_path, autojump_clock):
    """The whole server renews its keys: after an hour the file has others, and the first ones still open."""
    path = tmp_path / "key_file.json"
    async with testing.serve(content(tmp_path), workers="scripted") as app:
        first = keys_of(path)["inference"]
        await trio.sleep(3600)
        second = keys_of(path)["inference"]
        assert second != first
        async with app.channel() as channel:
            predict = InferenceAPIsServiceStub(channel).Predictions
            request = PredictionsRequest(model_name="echo", input={"data": b"x"})
            for key in (first, second):
                await predict(request, metadata={"authorization": f"Bearer {key}"})
            with pytest.raises(GRPCError) as refused:
                await predict(request, metadata={"authorization": "Bearer wrong"})
            assert refused.value.status is Status.UNAUTHENTICATED


@pytest.mark.parametrize(
    ("listener", "wrong"),
    [
        ({"tokens_file": "t"}, "contradict each other"),
        ({"services": ["health"]}, "has keys for"),
        ({"address": "0.0.0.0:1"}, "no tls;"),
        ({"key_file": None, "auth_exempt": ["health"]}, "auth_exempt means nothing"),
    ],
)
def test_contradictions(tmp_path, listener, wrong):
    """A key_file beside tokens_file, or with nothing that it has a key for, is an error; off loopback it needs TLS."""
    given = {"address": "127.0.0.1:0", "services": ["inference"], "key_file": "key_file.json", **listener}
    with pytest.raises(ConfigError, match=r"listeners\.a") as caught:
        config.parse({"listeners": {"a": given}}, folder=tmp_path)
    assert wrong in str(caught.value)


async def test_model_api_off(autojump_clock):
    """With `model_api = false` models are neither registered nor unregistered, whatever is asked; the rest works."""
    given = {
        "server": {"model_api": False},
        "listeners": {"a": {"address": "127.0.0.1:0", "services": ["management"]}},
        "models": {"echo": {"handler": "actorserve.handlers.echo:Echo"}},
    }
    async with testing.serve(given, workers="scripted") as app, app.channel("a") as channel:
        stub = ManagementAPIsServiceStub(channel)
        for call, request in (
            (stub.RegisterModel, RegisterModelRequest()),
            (stub.RegisterModel, RegisterModelRequest(url="x", handler="actorserve.handlers.echo:Echo")),
            (stub.UnregisterModel, UnregisterModelRequest(model_name="echo")),
            (stub.UnregisterModel, UnregisterModelRequest(model_name="no-such")),
        ):
            with pytest.raises(GRPCError) as caught:
                await call(request)
            assert (caught.value.status, caught.value.message) == (Status.PERMISSION_DENIED, "Model API disabled")
        assert "echo" in (await stub.ListModels(ListModelsRequest())).msg
