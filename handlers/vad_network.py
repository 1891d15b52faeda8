"""The network of Silero VAD (16 kHz), as functions of its weights: one call advances any number of streams.

A window is 512 new samples behind the last 64 of the window before. Its short-time spectrum (a convolution with a
fixed basis, filter 256, hop 128, reflected at its end) goes through four convolutions and one LSTM cell; the state
of a stream is the cell's (h, c) and those 64 samples. Source: the TorchScript that the package silero-vad carries.

What must not live here: files, requests, who is in a batch (voice_activity.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from torch import Tensor

RATE = 16_000
WINDOW = 512
OVERLAP = 64
HIDDEN = 128
_BINS = 129
_HOP = 128
_STRIDES = (1, 2, 2, 1)
_PREFIX = "_model."


class Weights(NamedTuple):
    """The tensors of the 16 kHz network."""

    basis: Tensor
    convolutions: tuple[tuple[Tensor, Tensor], ...]
    cell: tuple[Tensor, Tensor, Tensor, Tensor]
    last: tuple[Tensor, Tensor]


class State(NamedTuple):
    """What some streams remember: rows of (n, 128), (n, 128) and (n, 64)."""

    hidden: Tensor
    memory: Tensor
    tail: Tensor


def weights_of(state_dict: Mapping[str, Tensor]) -> Weights:
    """Pick the 16 kHz network's tensors. KeyError names one that is missing."""

    def pick(name: str) -> Tensor:
        return state_dict[_PREFIX + name].detach().float().contiguous()

    return Weights(
        basis=pick("stft.forward_basis_buffer"),
        convolutions=tuple(
            (pick(f"encoder.{layer}.reparam_conv.weight"), pick(f"encoder.{layer}.reparam_conv.bias"))
            for layer in range(len(_STRIDES))
        ),
        cell=(
            pick("decoder.rnn.weight_ih"),
            pick("decoder.rnn.weight_hh"),
            pick("decoder.rnn.bias_ih"),
            pick("decoder.rnn.bias_hh"),
        ),
        last=(pick("decoder.decoder.2.weight"), pick("decoder.decoder.2.bias")),
    )


def silence(device: torch.device) -> State:
    """The state of one stream that has heard nothing."""
    zeros = torch.zeros(1, HIDDEN, device=device)
    return State(zeros, zeros, torch.zeros(1, OVERLAP, device=device))


def advance(weights: Weights, windows: Tensor, state: State) -> tuple[Tensor, State]:
    """Hear one window of each stream. `windows`: (n, 512), -1 to 1; gives the n probabilities, and the new states."""
    samples = torch.cat((state.tail, windows), dim=1)
    padded = F.pad(samples.unsqueeze(1), (0, OVERLAP), mode="reflect")
    spectrum = F.conv1d(padded, weights.basis, stride=_HOP)
    sound = (spectrum[:, :_BINS].square() + spectrum[:, _BINS:].square()).sqrt()
    for (weight, bias), stride in zip(weights.convolutions, _STRIDES, strict=True):
        sound = F.relu(F.conv1d(sound, weight, bias, stride=stride, padding=1))
    hidden, memory = torch.lstm_cell(sound.squeeze(-1), (state.hidden, state.memory), *weights.cell)
    speech = F.conv1d(F.relu(hidden.unsqueeze(-1)), *weights.last)
    return speech.sigmoid().mean(dim=2).squeeze(1), State(hidden, memory, samples[:, -OVERLAP:])
