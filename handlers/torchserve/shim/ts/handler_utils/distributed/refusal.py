"""Why a handler that spreads one model over several processes does not load. One worker is one process here."""

from __future__ import annotations

import importlib.util
from typing import NoReturn


def refuse(library: str, who: str) -> NoReturn:
    """ImportError that names the library where it is absent, else NotImplementedError."""
    if importlib.util.find_spec(library) is None:
        raise ImportError(f"{who} needs {library}, which is not installed", name=library)
    raise NotImplementedError(f"{who}: one model in several processes (parallelType, torchrun) is not served here")
