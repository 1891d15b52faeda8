"""The GGUF reader. What must not live here: a model. The oracle is the package gguf, by the format's own authors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from actorserve.errors import LoadFailed
from actorserve.handlers.gguf import read_gguf

gguf = pytest.importorskip("gguf")

_KINDS = ("F32", "F16", "Q4_0", "Q4_1", "Q8_0")


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """A file with a tensor of each kind, and what the package says that they hold."""
    path = tmp_path / "small.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 3)
    writer.add_float32("llama.rope.freq_base", 0.5)
    writer.add_array("tokenizer.ggml.tokens", ["a", "Ġb", "🙂"])
    writer.add_bool("tokenizer.ggml.add_bos_token", val=False)
    rng, held = np.random.default_rng(0), {}
    for name in _KINDS:
        kind = gguf.GGMLQuantizationType[name]
        packed = gguf.quantize(rng.normal(size=(3, 64)).astype(np.float32), kind)
        writer.add_tensor(name, packed, raw_dtype=kind)
        held[name] = gguf.dequantize(packed, kind)
    writer.add_tensor("Q6_K", np.zeros((1, 210), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q6_K)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, held


def test_reads_metadata(written: tuple[Path, dict[str, np.ndarray]]) -> None:
    """Numbers, flags, texts and lists come back as they were written."""
    metadata = read_gguf(written[0]).metadata

    assert metadata["general.architecture"] == "llama"
    assert metadata["llama.block_count"] == 3
    assert metadata["llama.rope.freq_base"] == 0.5
    assert metadata["tokenizer.ggml.tokens"] == ["a", "Ġb", "🙂"]
    assert metadata["tokenizer.ggml.add_bos_token"] is False


@pytest.mark.parametrize("kind", _KINDS)
def test_reads_each_kind_of_tensor(written: tuple[Path, dict[str, np.ndarray]], kind: str) -> None:
    """Each kind is turned into the very floats that the format's own package gives."""
    path, held = written

    np.testing.assert_array_equal(read_gguf(path).tensor(kind), held[kind])


def test_names_a_kind_that_it_does_not_know(written: tuple[Path, dict[str, np.ndarray]]) -> None:
    """Another kind of quantisation is refused and the known ones are named."""
    with pytest.raises(LoadFailed, match=r"Q6_K is of GGUF type 14; this reader knows F32, F16, Q4_0, Q4_1, Q8_0"):
        read_gguf(written[0]).tensor("Q6_K")


def test_names_a_missing_tensor(written: tuple[Path, dict[str, np.ndarray]]) -> None:
    """A tensor that is not there is named."""
    with pytest.raises(LoadFailed, match="has no tensor blk"):
        read_gguf(written[0]).tensor("blk")


@pytest.mark.parametrize("size", [0, 3, 10, 60, 200])
def test_refuses_half_a_file(written: tuple[Path, dict[str, np.ndarray]], size: int) -> None:
    """A file that ends early, or an empty one, is refused; it does not hang, and the error names the file."""
    path, _ = written
    path.write_bytes(path.read_bytes()[:size])

    with pytest.raises(LoadFailed, match=r"small\.gguf is not a whole GGUF file"):
        read_gguf(path)


def test_refuses_missing_weights(written: tuple[Path, dict[str, np.ndarray]]) -> None:
    """A file whose header is whole but whose weights are cut off is refused when they are read."""
    path, _ = written
    path.write_bytes(path.read_bytes()[:-300])

    with pytest.raises(LoadFailed, match="ends before"):
        [read_gguf(path).tensor(kind) for kind in _KINDS]
