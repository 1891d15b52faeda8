"""A servicer moved from grpcio's or grpclib's own server to ours, unmodified, answers the same, as a client sees it.

The same classes run under the server that they were written for, and in our workers; one grpcio client asks both and
compares everything it can see: messages, initial metadata, code, details, trailers.
"""

import subprocess
import sys

import grpc
import pytest
from rpc_asking import asked
from rpc_rig import HERE, free_port

KINDS = {
    "blocking": "blocking_servicer:Servicer",
    "async": "async_servicer:Servicer",
    "mixed": "async_servicer:Mixed",
    "grpclib": "grpclib_service:Service",
}
METADATA = (("x-one", "1"), ("x-one", "2"), ("x-two", "with spaces"), ("x-three-bin", b"\0\1\xff"))
BLOCKING = (
    *("echo", "seen", "raise", "raise-empty", "raise-unprintable", "raise-stop", "raise-after-code"),
    *("raise-after-details", "raise-after-both", "abort", "abort-trailers", "abort-empty", "code", "code-only"),
    *("details-with-ok", "trailers", "initial", "initial-twice", "initial-then-raise", "getters", "none"),
    *("wrong-type", "no-message", "cancel", "rich", "unknown-case"),
)
ASYNC = (
    *("echo", "seen", "raise", "raise-empty", "raise-after-code", "raise-after-both", "abort", "abort-trailers"),
    *("abort-with-what-was-set", "abort-caught", "code", "code-number", "details-with-ok", "trailers"),
    *("trailers-wrong", "initial", "initial-twice", "getters", "none", "no-message", "unknown-case"),
)
GRPCLIB = (
    *("echo", "seen", "raise", "status", "status-empty", "rich", "trailers", "trailers-status", "initial"),
    *("initial-twice", "nothing", "twice", "wrong-type", "cancel", "timeout"),
)
IN_STREAMS = ("raise", "abort", "abort-trailers", "code", "trailers", "initial", "none", "no-message", "cancel")
CASES = [
    *(("blocking", "One", case, ()) for case in BLOCKING),
    *(("async", "One", case, ()) for case in ASYNC),
    *(("grpclib", "One", case, ()) for case in GRPCLIB),
    *((kind, "Many", "", (40, 20_000)) for kind in ("blocking", "async", "mixed", "grpclib")),
    *(("blocking", "Many", f"{when}:{case}", ()) for when in ("then", "early") for case in IN_STREAMS),
    *(("async", "Many", f"then:{case}", ()) for case in IN_STREAMS if case in ASYNC),
    *(("grpclib", "Many", f"then:{case}", ()) for case in GRPCLIB if case != "cancel"),
    *((kind, "Collect", case, ()) for kind in ("blocking", "async") for case in ("abort", "raise", "trailers", "none")),
    *(("grpclib", "Collect", case, ()) for case in ("status", "trailers", "nothing")),
    *((kind, "Talk", case, ()) for kind in ("blocking", "async") for case in ("abort", "raise", "trailers", "initial")),
    *(("grpclib", "Talk", case, ()) for case in ("status", "rich", "raise", "initial")),
    *(("mixed", "One", case, ()) for case in ("", "abort", "raise", "initial")),
    *(("mixed", rpc, "", ()) for rpc in ("Many", "Collect", "Talk")),
    ("mixed", "Many", "raise", ()),
]


@pytest.fixture(scope="module")
def ours(tmp_path_factory, generated):
    """Addresses of our listeners, one a kind, of one server."""
    folder = tmp_path_factory.mktemp("server")
    addresses = {kind: f"127.0.0.1:{free_port()}" for kind in KINDS}
    text = "[log]\naccess = false\n[server]\nstate_dir = ''\n"
    for kind, target in KINDS.items():
        text += f"""
[listeners.{kind}]
address = "{addresses[kind]}"
services = ["servicers"]
[[servicers]]
servicer = "{target}"
listeners = ["{kind}"]
path = ["{generated}", "{HERE}"]
max_ongoing_requests = 8
"""
    (folder / "config.toml").write_text(text)
    command = [sys.executable, "-m", "actorserve", str(folder / "config.toml")]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield addresses
    finally:
        process.terminate()
        status = process.wait(30)
        sys.stdout.write((folder / "log").read_text())
    assert status == 0


@pytest.fixture(scope="module")
def stubs(ours, reference):
    """By kind: the stub of the server that it was written for, and of ours."""
    import diff_pb2_grpc  # noqa: PLC0415  # generated when the tests run

    channels = {kind: [grpc.insecure_channel(where[kind]) for where in (reference, ours)] for kind in KINDS}
    for channel in (channel for pair in channels.values() for channel in pair):
        grpc.channel_ready_future(channel).result(30)
    yield {kind: [diff_pb2_grpc.DiffStub(channel) for channel in pair] for kind, pair in channels.items()}
    for channel in (channel for pair in channels.values() for channel in pair):
        channel.close()


def requests(rpc, case, sizes):
    """What a case sends."""
    import diff_pb2  # noqa: PLC0415  # as above

    count, size = sizes or (3, 10)
    if rpc in ("One", "Many"):
        return [diff_pb2.Ask(case=case, count=count, data=bytes(size))]
    plain = "" if rpc == "Collect" else "echo"
    before = [diff_pb2.Ask(case=plain, count=number, data=b"abc") for number in range(5)]
    return [*before, diff_pb2.Ask(case=case or plain), diff_pb2.Ask(case=plain)]


@pytest.mark.parametrize(("kind", "rpc", "case", "sizes"), CASES)
def test_same_as_its_own_server(stubs, kind, rpc, case, sizes):
    """One case: whatever the client can see is the same."""
    theirs, here = stubs[kind]
    expected, actual = (
        asked(stub, rpc, requests(rpc, case, sizes), metadata=METADATA, timeout=20) for stub in (theirs, here)
    )
    assert expected == actual
