"""Registrations that are under way: what DescribeModel and ListModels show before there is a model.

What must not live here: what a registration does (model_store.py, fetching.py), JSON (services/).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum


class Phase(Enum):
    """What a registration does now. LOADING: it is handed over, and not yet in the tree."""

    DOWNLOADING = "DOWNLOADING"
    UNPACKING = "UNPACKING"
    LOADING = "LOADING"


@dataclass(slots=True)
class UnderWay:
    """One registration. `name`: empty where the archive is to say it. Bytes of the download; `total`: where known."""

    name: str
    url: str
    phase: Phase = Phase.UNPACKING
    done: int = 0
    total: int | None = None


class Board:
    """All registrations that are under way, the oldest first."""

    def __init__(self) -> None:
        self._entries: list[UnderWay] = []

    @contextmanager
    def entry(self, name: str, url: str) -> Iterator[UnderWay]:
        """An entry for as long as the block lasts."""
        one = UnderWay(name, url)
        self._entries.append(one)
        try:
            yield one
        finally:
            self._entries = [other for other in self._entries if other is not one]

    def all(self) -> list[UnderWay]:
        """Every registration."""
        return list(self._entries)

    def of(self, name: str) -> list[UnderWay]:
        """Those of a model, by the name that the caller gave."""
        return [one for one in self._entries if one.name == name]
