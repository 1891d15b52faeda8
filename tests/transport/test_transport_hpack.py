import contextlib

import hpack as python_hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actorserve.services.transport import frames, hpack

names = st.from_regex(rb"[a-z0-9\-]{1,12}", fullmatch=True)
values = st.binary(max_size=40)
libraries = pytest.mark.parametrize("library", ["jh2", "hpack"])


@libraries
@given(blocks=st.lists(st.lists(st.tuples(names, values), max_size=8), max_size=6))
def test_blocks_of_another_encoder_are_read(library, blocks):
    """A sequence of blocks that use Huffman coding and the dynamic table decodes to what was encoded."""
    encoder, decode = python_hpack.Encoder(), hpack.decoder(100_000, library)
    for block in blocks:
        assert block == [(field[0], field[1]) for field in decode(encoder.encode(block))]


@libraries
@given(junk=st.binary(max_size=60))
def test_junk_is_a_fault_of_the_connection_and_nothing_else(library, junk):
    """No octets make a decoder raise anything but ConnectionFault."""
    with contextlib.suppress(frames.ConnectionFault):
        hpack.walk(junk)
        hpack.decoder(1000, library)(junk)


@libraries
def test_a_list_far_above_the_limit_ends_the_connection(library):
    """A small block that unfolds into a large list is stopped while it is decoded."""
    encoder = python_hpack.Encoder()
    bomb = encoder.encode([(b"a", b"x" * 3000)]) + b"\xbe" * 100
    with pytest.raises(frames.ConnectionFault) as caught:
        hpack.decoder(4096, library)(bomb)

    assert caught.value.code == frames.ENHANCE_YOUR_CALM


@given(st.lists(st.tuples(names, values), max_size=8))
def test_our_blocks_are_read_by_another_decoder_and_leave_its_table_empty(pairs):
    """Literals without indexing: the same bytes are valid at any time."""
    decoder = python_hpack.Decoder()
    block = hpack.TABLE_SIZE_ZERO + hpack.encode_pairs(pairs)

    assert pairs == [tuple(field) for field in decoder.decode(block, raw=True)]
    assert not decoder.header_table.dynamic_entries


@pytest.mark.parametrize(
    "field",
    [
        (b"Upper", b"a"),
        (b"", b"a"),
        (b"sp ace", b"a"),
        (b"connection", b"close"),
        (b"transfer-encoding", b"chunked"),
        (b"te", b"gzip"),
        (b"key", b"nul\0"),
        (b"key", b"cr\r"),
        (b"key", b"lf\n"),
        (b"key", b" before"),
        (b"key", b"after\t"),
        (b":unknown", b"a"),
        (b":status", b"200"),
    ],
)
def test_malformed_fields_are_found(field):
    """What RFC 9113 §8.2 and §8.3 forbid in a request is Malformed."""
    with pytest.raises(hpack.Malformed):
        hpack.split([(b":path", b"/"), field], hpack.REQUEST_PSEUDO, 1000)


def test_pseudo_fields_come_first_and_once():
    """A late or repeated pseudo-field is Malformed."""
    for block in ([(b"a", b"b"), (b":path", b"/")], [(b":path", b"/"), (b":path", b"/")]):
        with pytest.raises(hpack.Malformed):
            hpack.split(block, hpack.REQUEST_PSEUDO, 1000)
