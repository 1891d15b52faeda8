"""Train the digits network of handlers/digits.py and save its weights.

Run: python tools/train_digits.py [FILE]
Data: scikit-learn's handwritten digits (1,797 samples, in its package). A stratified quarter is held out (the split of
`split()`, which the tests use too) and never trained on; the script fails if fewer than 98 % of it are read right.
Seeded and on one thread, so that the same versions give the same weights.
What must not live here: the network itself, which the handler owns.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from actorserve.handlers.digits import DigitNet

SEED = 20
EPOCHS = 60
BATCH = 64
OUT = Path(__file__).parent.parent / "handlers" / "weights" / "digits.safetensors"


def split() -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """Training samples, held-out samples, training labels, held-out labels."""
    digits = load_digits()
    parts = train_test_split(
        digits.data.astype(np.float32), digits.target, test_size=0.25, random_state=0, stratify=digits.target
    )
    return parts[0], parts[1], parts[2], parts[3]


def train(samples: Tensor, labels: Tensor) -> DigitNet:
    """Adam with a one-cycle rate; each batch is shifted by up to one cell, for digits that stand off centre."""
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(mode=True)
    net = DigitNet()
    optimiser = torch.optim.AdamW(net.parameters(), weight_decay=0.01)
    steps = EPOCHS * -(-len(samples) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=4e-3, total_steps=steps)
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(samples)).split(BATCH):
            loss = nn.functional.cross_entropy(net(_shifted(samples[chosen])), labels[chosen], label_smoothing=0.02)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return net.eval()


def _shifted(samples: Tensor) -> Tensor:
    if torch.rand(()) < 0.5:  # half of the batches stay as they are
        return samples
    left = int(torch.randint(0, 3, ()))
    padded = nn.functional.pad(samples.view(-1, 8, 8), (1, 1))
    return padded[:, :, left : left + 8].reshape(-1, 64)


def accuracy(net: DigitNet, samples: Tensor, labels: Tensor) -> float:
    """Part of the samples that are read right."""
    with torch.inference_mode():
        return float((net(samples).argmax(1) == labels).float().mean())


def main() -> int:
    """Train, judge, save."""
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else OUT
    samples, held_out, labels, held_out_labels = (torch.from_numpy(part) for part in split())
    net = train(samples, labels)
    right = accuracy(net, held_out, held_out_labels)
    print(f"held-out quarter: {len(held_out)} samples, {100 * right:.2f} % right")
    if right <= 0.98:  # the promise in the docs
        print("not saved: 98 % is the least", file=sys.stderr)
        return 1
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(net.state_dict(), out)
    print(f"saved {out.name}, {out.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
