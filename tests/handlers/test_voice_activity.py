"""VoiceActivity on its real weights: the package's own probabilities, however the sound is cut or batched."""

# ruff: noqa: SIM300  # expected == actual

from __future__ import annotations

import importlib.util
import warnings
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from drive import loaded

from actorserve.errors import BadInput, LoadFailed
from actorserve.handlers.base import Request, missing_methods
from actorserve.handlers.voice_activity import VoiceActivity

WINDOW = 512


def _tool():
    spec = importlib.util.spec_from_file_location("make_voice", Path(__file__).parents[2] / "tools" / "make_voice.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def sounds() -> list[bytes]:
    """Five voices of different pitch."""
    tool = _tool()
    return [tool.spoken(pitch, seed).tobytes() for seed, pitch in enumerate((100, 120, 150, 180, 210))]


@pytest.fixture(scope="module")
def vad(cache_dir):
    if importlib.util.find_spec("silero_vad") is None:
        pytest.skip("silero_vad is not installed (just zoo)")
    return loaded(VoiceActivity(), cache_dir)


def hear(vad, *pieces: bytes) -> list[float]:
    """One stream, piece by piece, to its end."""
    state = vad.open(Request({}))
    said = [vad.feed([state], [Request({"data": piece})])[0] for piece in pieces]
    said.append(vad.finish(state) or {"speech": []})
    vad.release(state)
    return [one for answer in said for one in answer["speech"]]


def windows(sound: bytes) -> list[bytes]:
    """Whole windows of a sound."""
    return [sound[at : at + 2 * WINDOW] for at in range(0, len(sound) // (2 * WINDOW) * 2 * WINDOW, 2 * WINDOW)]


@pytest.mark.zoo
def test_the_package_says_the_same(vad, sounds):
    """Window by window, the probabilities of the package's own model, within 1e-4; speech and silence both occur."""
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        from silero_vad import load_silero_vad  # noqa: PLC0415  # it belongs to the zoo, which may be absent

        oracle = load_silero_vad()
    for sound in sounds:
        oracle.reset_states()
        samples = torch.from_numpy(np.frombuffer(sound, "<i2").astype(np.float32) / 32768)
        with torch.inference_mode():
            expected = [oracle(part, 16000).item() for part in samples.split(WINDOW) if len(part) == WINDOW]
        actual = hear(vad, *windows(sound))
        assert min(expected) < 0.1
        assert max(expected) > 0.9
        assert np.abs(np.array(expected) - actual).max() < 1e-4


@pytest.mark.zoo
def test_batched_is_one_at_a_time(vad, sounds):
    """Five streams in one batch hear what each hears alone, also when they come and go."""
    alone = [hear(vad, *windows(sound)) for sound in sounds]
    states = [vad.open(Request({})) for _ in sounds]
    parts = [windows(sound) for sound in sounds]
    together: list[list[float]] = [[] for _ in sounds]
    for turn in range(len(parts[0])):
        here = [index for index in range(len(sounds)) if (turn + index) % 7]  # somebody is always silent for a turn
        answers = vad.feed(
            [states[index] for index in here], [Request({"data": parts[index].pop(0)}) for index in here]
        )
        for index, answer in zip(here, answers, strict=True):
            together[index] += answer["speech"]
    for expected, actual in zip(alone, together, strict=True):
        assert np.abs(np.array(expected[: len(actual)]) - actual).max() < 1e-4
        assert len(actual) > 60


@pytest.mark.zoo
def test_cuts_do_not_matter(vad, sounds):
    """Pieces of any length give the same probabilities, and `at` says where each answer begins."""
    sound = sounds[0]
    whole = hear(vad, sound)
    odd = hear(vad, sound[:2], sound[2:2002], b"", sound[2002:40000], sound[40000:])
    assert len(whole) == len(sound) // 2 // WINDOW
    assert np.abs(np.array(whole) - odd).max() < 1e-4
    state = vad.open(Request({}))
    answers = [vad.feed([state], [Request({"data": bytes(3000)})])[0] for _ in range(3)]
    assert [(0.0, 2), (0.064, 3), (0.16, 3)] == [(one["at"], len(one["speech"])) for one in answers]
    assert 1 == len(vad.finish(state)["speech"])


@pytest.mark.zoo
def test_a_bad_piece_fails_alone(vad, sounds):
    """Half a sample, a piece that is too long, or none at all: that item fails, and its stream is as it was."""
    good, bad = vad.open(Request({})), vad.open(Request({}))
    part = windows(sounds[0])[0]
    for inputs, field in (({"data": b"abc"}, "even number"), ({"data": bytes(320002)}, "160000"), ({}, "missing")):
        answers = vad.feed([good, bad], [Request({"data": part}), Request(inputs)])
        assert 1 == len(answers[0]["speech"])
        assert isinstance(answers[1], BadInput)
        assert field in str(answers[1])
    assert hear(vad, part)[0] == vad.feed([bad], [Request({"data": part})])[0]["speech"][0]


@pytest.mark.zoo
def test_what_it_refuses_to_load(cache_dir, tmp_path):
    """Another TorchScript file, or none, is named."""
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "other.jit"))
    (tmp_path / "broken.jit").write_bytes(b"no archive")
    with pytest.raises(LoadFailed, match=r"other\.jit does not hold Silero VAD's network"):
        loaded(VoiceActivity(), cache_dir, weights=str(tmp_path / "other.jit"))
    with pytest.raises(LoadFailed, match=r"broken\.jit does not hold"):
        loaded(VoiceActivity(), cache_dir, weights=str(tmp_path / "broken.jit"))
    with pytest.raises(LoadFailed, match="does not exist"):
        loaded(VoiceActivity(), cache_dir, weights="nowhere.jit")


def test_it_is_a_handler():
    """It has what sequences need."""
    assert missing_methods(VoiceActivity()) is None


def test_the_sample_is_the_tools():
    """`examples/samples/voice.wav` is what tools/make_voice.py makes."""
    with wave.open(str(Path(__file__).parents[2] / "examples" / "samples" / "voice.wav")) as file:
        shipped = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(int)
    assert np.abs(shipped - _tool().spoken().astype(int)).max() <= 1
