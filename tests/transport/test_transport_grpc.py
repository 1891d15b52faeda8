from collections import deque

import pytest
from echo_service import framed
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from hypothesis import given
from hypothesis import strategies as st
from multidict import MultiDict

from actorserve.services.transport import hpack, values
from actorserve.services.transport.messages import MessageReader, frame_message

keys = st.from_regex(r"x-[a-z0-9_.\-]{0,10}", fullmatch=True).filter(lambda key: not key.endswith("-bin"))
texts = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=20).map(str.strip)
pairs = st.lists(st.tuples(keys, texts) | st.tuples(keys.map(lambda key: key + "-bin"), st.binary(max_size=30)))


@given(pairs)
def test_metadata_comes_back_as_it_was_sent(metadata):
    """Keys, order, repetition and octets survive, whichever library decodes the block."""
    block = values.encode_metadata(MultiDict(metadata))

    for library in ("jh2", "hpack"):
        decoded = hpack.decoder(1_000_000, library)(block) if block else []
        _, received = hpack.split(decoded, hpack.NO_PSEUDO, 1_000_000)

        assert metadata == list(values.decode_metadata(received).items())


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        ("Upper", "a", ValueError),
        ("grpc-status", "0", ValueError),
        ("te", "trailers", ValueError),
        ("key", "å", ValueError),
        ("key", "line\nbreak", ValueError),
        ("key", b"bytes", TypeError),
        ("key-bin", "text", TypeError),
    ],
)
def test_metadata_that_gRPC_forbids_is_refused(key, value, error):  # noqa: N802  the name of the thing
    """The caller is told which key is wrong; nothing of it reaches the wire."""
    with pytest.raises(error, match=key):
        values.encode_metadata({key: value})


@pytest.mark.parametrize("wire", [b"AAE", b"AAE=", b"AAE,AAE", b"AAE, AAE="])
def test_binary_metadata_is_read_with_and_without_padding(wire):
    """Padding is optional and a comma joins values, as the protocol allows."""
    decoded = values.decode_metadata([(b"k-bin", wire)])

    assert {b"\0\1"} == set(decoded.getall("k-bin"))


def test_binary_metadata_that_is_no_base64_is_an_error_of_the_peer():
    """A value that does not decode names its key."""
    with pytest.raises(GRPCError, match="k-bin"):
        values.decode_metadata([(b"k-bin", b"!")])


@given(st.text())
def test_status_messages_survive_percent_encoding(text):
    """Any text comes back, and only printable ASCII crosses the wire."""
    text = text.encode(errors="replace").decode()
    wire = values.encode_text(text)

    assert all(0x20 <= octet <= 0x7E for octet in wire)
    assert text == values.decode_text(wire)


@given(st.binary())
def test_decoding_a_status_message_never_fails(wire):
    """Whatever a peer sends becomes text."""
    assert isinstance(values.decode_text(wire), str)


@pytest.mark.parametrize(
    ("wire", "seconds"),
    [
        (b"1H", 3600),
        (b"2M", 120),
        (b"3S", 3),
        (b"4m", 0.004),
        (b"5u", 0.000005),
        (b"6n", 6e-9),
        (b"99999999S", 99999999),
    ],
)
def test_timeouts_are_read_in_every_unit(wire, seconds):
    """All six units of the protocol."""
    assert pytest.approx(seconds) == values.decode_timeout(wire)


@pytest.mark.parametrize("wire", [b"", b"1", b"S", b"123456789S", b"-1S", b"1 S", b"1.5S", b"1s"])
def test_timeouts_out_of_form_are_refused(wire):
    """More than eight digits, no unit or an unknown one is an error, not a guess."""
    with pytest.raises(ValueError, match="grpc-timeout"):
        values.decode_timeout(wire)


@given(st.floats(0, 3e11))
def test_timeouts_are_never_shortened_on_the_wire(seconds):
    """What is sent is at least what was asked, and within a thousandth of it."""
    sent = values.decode_timeout(values.encode_timeout(seconds))

    assert sent >= seconds * (1 - 1e-12)
    assert sent <= seconds * 1.001 + 1e-9


@given(st.lists(st.binary(max_size=50)), st.data())
def test_messages_survive_any_split(messages, data):
    """However DATA is cut, the same messages come out, and every octet is accounted for."""
    wire = b"".join(framed(message) for message in messages)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=10)))
    chunks = [wire[a:b] for a, b in zip([0, *cuts], [*cuts, len(wire)], strict=True)]
    reader, inbox, received = MessageReader(1000), deque(), []
    for chunk in filter(None, chunks):
        inbox.append(chunk)
        while (message := reader.next_message(inbox)) is not None:
            received.append(message)

    assert messages == received
    assert len(wire) == reader.taken
    assert reader.between_messages


def test_a_message_above_the_limit_is_refused_by_its_prefix():
    """Both sizes are named, before any of the message is held."""
    with pytest.raises(GRPCError, match=r"of 101 bytes .* limit of 100 bytes") as caught:
        MessageReader(100).next_message(deque([framed(b"x" * 101)[:5]]))

    assert Status.RESOURCE_EXHAUSTED is caught.value.status


@pytest.mark.parametrize(
    ("encoding", "status"), [(None, Status.INTERNAL), (b"identity", Status.INTERNAL), (b"br", Status.INTERNAL)]
)
def test_compressed_messages_are_refused_as_the_protocol_says(encoding, status):
    """The flag without an encoding is the peer's error; with one, it is not supported."""
    with pytest.raises(GRPCError) as caught:
        MessageReader(100, encoding).next_message(deque([framed(b"x", flag=1)]))

    assert status is caught.value.status


def test_a_message_to_send_above_the_limit_is_refused():
    """The sender is told both sizes."""
    with pytest.raises(GRPCError, match=r"of 11 bytes .* limit of 10 bytes"):
        frame_message(b"x" * 11, 10)
