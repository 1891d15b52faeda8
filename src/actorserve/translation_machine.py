"""Where a config.properties is translated: the machine, the paths on it, and Java's bounds. Purely.

What must not live here: what a key means (translation.py, translation_listeners.py, translation_models.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from actorserve.properties import Values, wrong

MOST = 2**31 - 1
"""Java's largest int: what stands for "no limit" in such files."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What a translation needs to know: the working folder, which relative paths are below, and what computes."""

    folder: Path
    gpus: int
    cores: int


def path_of(values: Values, key: str, machine: Machine) -> Path:
    """A key's path: below the working folder, with the home folder for "~". ConfigError."""
    try:
        return machine.folder / Path(values[key]).expanduser()
    except RuntimeError as error:
        raise wrong(key, values[key], f"a path: {error}") from None
