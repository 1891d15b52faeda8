"""Make `examples/samples/voice.wav`: half a second of silence, a synthetic voice that sings four vowels, and silence.

Run: python tools/make_voice.py [FILE]
Harmonics of a gliding pitch go through the first three formants of each vowel (the means of Peterson and Barney,
1952). No recording is in it, so that it is free of anybody's rights.
"""

from __future__ import annotations

import sys
import wave
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

RATE = 16_000
VOWELS = ((730, 1090, 2440), (270, 2290, 3010), (300, 870, 2240), (530, 1840, 2480))
SYLLABLES_PER_S = 4
FORMANTS = ((1.0, 80.0), (0.6, 100.0), (0.3, 150.0))  # how loud, and how wide in Hz


def voice(seconds: float, pitch: float = 120.0) -> NDArray[np.float64]:
    """The voice alone, -0.5 to 0.5, at 16 kHz. `pitch` in Hz."""
    t = np.arange(int(seconds * RATE)) / RATE
    glide = pitch * (1 + 0.05 * np.sin(2 * np.pi * 3 * t) + 0.1 * np.sin(2 * np.pi * 0.7 * t))
    phase = 2 * np.pi * np.cumsum(glide) / RATE
    steps = np.array(VOWELS, float)[(t * SYLLABLES_PER_S).astype(int) % len(VOWELS)]
    smooth = np.ones(800) / 800
    centres = [np.convolve(np.pad(column, (400, 399), "edge"), smooth, "valid") for column in steps.T]
    sound = np.zeros(len(t))
    for harmonic in range(1, 40):
        frequency = harmonic * glide
        loud = sum(a / (1 + ((frequency - c) / w) ** 2) for (a, w), c in zip(FORMANTS, centres, strict=True))
        sound += loud * np.sin(harmonic * phase) / harmonic**0.5 * (frequency < 7500)
    sound *= np.clip(1.5 * np.sin(2 * np.pi * SYLLABLES_PER_S * t) + 0.6, 0, 1)
    return 0.5 * sound / np.abs(sound).max()


def spoken(pitch: float = 120.0, seed: int = 0) -> NDArray[np.int16]:
    """Silence, the voice, and silence, with a little noise: 2.56 s as 16-bit samples."""
    quiet = np.zeros(8 * 1024)
    sound = np.concatenate((quiet, voice(1.28, pitch), quiet, quiet[:4096]))
    sound += 0.001 * np.random.default_rng(seed).standard_normal(len(sound))
    return (sound * 32767).round().astype("<i2")


def main() -> None:
    """Write the file."""
    default = Path(__file__).parents[1] / "examples" / "samples" / "voice.wav"
    with wave.open(sys.argv[1] if len(sys.argv) > 1 else str(default), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(spoken().tobytes())


if __name__ == "__main__":
    main()
