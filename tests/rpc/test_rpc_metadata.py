"""What a servicer learns of its caller over TLS, and what becomes of metadata that gRPC does not allow."""

import ssl

import grpc
import pytest
import trio
import trustme
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from rpc_rig import config

from actorserve import testing
from actorserve.client import Channel

pytestmark = pytest.mark.usefixtures("generated")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """PEM files of a CA, a server and a client."""
    folder = tmp_path_factory.mktemp("certificates")
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(folder / "ca.pem"))
    for name, certificate in (
        ("server", ca.issue_cert("localhost", "127.0.0.1")),
        ("client", ca.issue_cert("client.example", common_name="the client")),
    ):
        certificate.private_key_pem.write_to_path(str(folder / f"{name}.key"))
        for blob in certificate.cert_chain_pems:
            blob.write_to_path(str(folder / f"{name}.pem"), append=True)
    return folder


def who_by_grpcio(certificates):
    """What the servicer says of the same client under grpcio's own server."""
    from concurrent import futures  # noqa: PLC0415  # for this comparison alone

    import busy_servicer  # noqa: PLC0415  # generated when the tests run
    import diff_pb2  # noqa: PLC0415
    import diff_pb2_grpc  # noqa: PLC0415

    def pem(name):
        return (certificates / name).read_bytes()

    server = grpc.server(futures.ThreadPoolExecutor(1))
    diff_pb2_grpc.add_DiffServicer_to_server(busy_servicer.Metadata(), server)
    pair = [(pem("server.key"), pem("server.pem"))]
    secure = grpc.ssl_server_credentials(pair, pem("ca.pem"), require_client_auth=True)
    port = server.add_secure_port("127.0.0.1:0", secure)
    server.start()
    try:
        credentials = grpc.ssl_channel_credentials(pem("ca.pem"), pem("client.key"), pem("client.pem"))
        with grpc.secure_channel(f"localhost:{port}", credentials) as channel:
            return diff_pb2_grpc.DiffStub(channel).One(diff_pb2.Ask(case="who"), timeout=20).text
    finally:
        server.stop(0).wait()


async def test_a_client_is_known_by_its_certificate(generated, certificates, monkeypatch):
    """`peer_identities` and what the transport is are what grpcio's own server says of the same client."""
    from rpc_rig import HERE  # noqa: PLC0415

    monkeypatch.syspath_prepend(str(HERE))
    expected = who_by_grpcio(certificates)
    import diff_grpc  # noqa: PLC0415  # as above
    import diff_pb2  # noqa: PLC0415

    settings = config(generated, "busy_servicer:Metadata")
    files = {"certificate": "server.pem", "key": "server.key", "client_ca": "ca.pem"}
    settings["listeners"]["user"]["tls"] = {key: str(certificates / name) for key, name in files.items()}
    context = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
    context.load_cert_chain(certificates / "client.pem", certificates / "client.key")
    with trio.fail_after(60):
        async with testing.serve(settings) as app:
            address = app.address("user").replace("127.0.0.1", "localhost")
            async with Channel(address, tls=context) as channel:
                told = await diff_grpc.DiffStub(channel).One(diff_pb2.Ask(case="who"))
    assert told.text == expected


async def test_metadata_that_grpc_does_not_allow(generated):
    """INTERNAL that names the key; the replica goes on."""
    import diff_grpc  # noqa: PLC0415  # as above
    import diff_pb2  # noqa: PLC0415

    with trio.fail_after(60):
        async with (
            testing.serve(config(generated, "busy_servicer:Metadata")) as app,
            app.channel("user") as channel,
        ):
            stub = diff_grpc.DiffStub(channel)
            for case, text in (
                ("wrong-trailer", "trailing metadata: invalid metadata key 'x-Wrong'"),
                ("wrong-initial", "initial metadata: invalid metadata key 'x y'"),
            ):
                with pytest.raises(GRPCError) as wrong:
                    await stub.One(diff_pb2.Ask(case=case))
                assert wrong.value.status is Status.INTERNAL
                assert text in wrong.value.message
            assert len((await stub.One(diff_pb2.Ask(count=5))).data) == 5


async def test_compression(generated):
    """`set_compression` has an answer compressed."""
    import diff_grpc  # noqa: PLC0415  # as above
    import diff_pb2  # noqa: PLC0415

    with trio.fail_after(60):
        async with (
            testing.serve(config(generated, "busy_servicer:Metadata")) as app,
            app.channel("user") as channel,
            diff_grpc.DiffStub(channel).One.open() as stream,
        ):
            await stream.send_message(diff_pb2.Ask(case="compress", count=10_000), end=True)
            assert len((await stream.recv_message()).data) == 10_000
            assert stream.received_compressed
