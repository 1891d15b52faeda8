"""VoiceActivity: is somebody speaking? One sequence is one stream of sound; Silero VAD hears many of them at once.

Sound comes in pieces of any length; each piece is answered with one probability for every 32 ms (512 samples) that
it has completed. Streams that have a piece waiting share each forward of the network.
What must not live here: the network (vad_network.py). The weights are the package silero-vad's TorchScript file: it
is read by torch's own loader, which unpickles no Python, and only its tensors are used.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from actorserve.errors import BadInput, LoadFailed
from actorserve.handlers.base import Answer, Context, Request
from actorserve.handlers.inputs import check_options, main_input, read_each
from actorserve.handlers.model_files import model_file, option_integer
from actorserve.handlers.vad_network import RATE, WINDOW, State, Weights, advance, silence, weights_of

__all__ = ["VoiceActivity"]

Samples = NDArray[np.float32]


@dataclass(slots=True)
class _Stream:
    """What is kept of one stream: the network's state, samples short of a window, and how many windows were heard."""

    state: State
    rest: Samples
    heard: int = 0


class VoiceActivity:
    """Inputs of an item: `data` (or `body`), sound: mono, 16 kHz, signed 16 bit, little-endian.

    Options: `weights` (a file instead of the package's), `max_seconds` (of one item, 10).
    """

    _weights: Weights
    _device: torch.device
    _max_samples: int

    def load(self, context: Context) -> None:
        """Read the weights."""
        check_options(context.options, ("weights", "max_seconds"))
        path = model_file(context, "weights", "silero_vad", "data/silero_vad.jit")
        self._max_samples = option_integer(context.options, "max_seconds", 10, 1, 3600) * RATE
        self._device = torch.device(context.device)
        try:
            with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
                network = torch.jit.load(str(path), map_location=self._device)  # type: ignore[no-untyped-call]
                tensors = network.state_dict()
            self._weights = weights_of(tensors)
        except (RuntimeError, KeyError) as error:
            raise LoadFailed(f"{path} does not hold Silero VAD's network: {error}") from error

    def open(self, request: Request) -> _Stream:  # nothing in it matters here
        """Begin in silence."""
        return _Stream(silence(self._device), np.empty(0, np.float32))

    def feed(self, states: Sequence[_Stream], requests: Sequence[Request]) -> Sequence[Answer | Exception]:
        """Hear one piece of each stream; a piece that is no sound fails alone, and its stream stays as it was."""
        pieces = read_each(requests, self._read)
        good = [(stream, piece) for stream, piece in zip(states, pieces, strict=True) if isinstance(piece, np.ndarray)]
        answers = iter(self._hear([stream for stream, _ in good], [piece for _, piece in good]))
        return [piece if isinstance(piece, Exception) else next(answers) for piece in pieces]

    def finish(self, state: _Stream) -> Answer | None:
        """Hear what is short of a window, with silence behind it."""
        if not len(state.rest):
            return None
        (answer,) = self._hear([state], [np.zeros(WINDOW - len(state.rest), np.float32)])
        return answer

    def release(self, state: _Stream) -> None:
        """Nothing is held outside the state."""

    def warmup(self) -> Sequence[dict[str, bytes]]:
        """Two windows of silence."""
        return [{"data": bytes(4 * WINDOW)}]

    def _read(self, request: Request) -> Samples:
        data = main_input(request)
        if len(data) % 2:
            raise BadInput("data", f"has {len(data)} bytes; samples are signed 16 bit, so an even number is due")
        if len(data) // 2 > self._max_samples:
            raise BadInput("data", f"has {len(data) // 2} samples; one message takes {self._max_samples}")
        samples: Samples = np.frombuffer(data, "<i2").astype(np.float32) / np.float32(32768)
        return samples

    def _hear(self, streams: Sequence[_Stream], pieces: Sequence[Samples]) -> list[Answer]:
        """Give each stream its piece, window by window, all that have one at once."""
        windows: list[Samples] = []
        for stream, piece in zip(streams, pieces, strict=True):
            sound = np.concatenate((stream.rest, piece))
            whole = len(sound) // WINDOW
            windows.append(sound[: whole * WINDOW].reshape(whole, WINDOW))
            stream.rest = sound[whole * WINDOW :]
        speech: list[list[float]] = [[] for _ in streams]
        for turn in range(max(map(len, windows), default=0)):
            hearing = [index for index, some in enumerate(windows) if turn < len(some)]
            heard = self._advance([streams[index] for index in hearing], [windows[index][turn] for index in hearing])
            for index, probability in zip(hearing, heard, strict=True):
                speech[index].append(round(probability, 6))
        answers: list[Answer] = []
        for stream, probabilities in zip(streams, speech, strict=True):
            answers.append({"at": stream.heard * WINDOW / RATE, "speech": probabilities})
            stream.heard += len(probabilities)
        return answers

    def _advance(self, streams: Sequence[_Stream], windows: Sequence[Samples]) -> list[float]:
        with torch.inference_mode():
            together = State(*(torch.cat(rows) for rows in zip(*(stream.state for stream in streams), strict=True)))
            sound = torch.from_numpy(np.stack(windows)).to(self._device)
            probabilities, after = advance(self._weights, sound, together)
            for stream, *rows in zip(streams, *(torch.split(tensor, 1) for tensor in after), strict=True):
                stream.state = State(*rows)
            return [float(one) for one in probabilities.cpu()]
