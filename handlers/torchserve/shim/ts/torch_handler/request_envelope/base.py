"""What an envelope does: it takes rows apart before the handler, and packs its answers afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...utils.util import PredictionException


class BaseEnvelope:
    """Stands around a handler's entry."""

    def __init__(self, handle_fn: Callable[[Any, Any], Any]) -> None:
        self._handle_fn = handle_fn
        self.context: Any = None

    def handle(self, data: Any, context: Any) -> Any:
        """Answer a batch."""
        self.context = context
        return self.format_output(self._handle_fn(self.parse_input(data), context))

    def parse_input(self, data: Any) -> Any:
        """The handler's data."""
        return data

    def format_output(self, data: Any) -> Any:
        """The answers, one a row."""
        return data


@dataclass(frozen=True)
class Group:
    """What one request brings: items for the handler, and what its answer must say."""

    items: list[Any]
    said: Any = None


class GroupEnvelope(BaseEnvelope):
    """The handler gets the items of all requests in one list, and returns as many answers.

    A request that cannot be read fails alone, with INVALID_ARGUMENT.
    """

    def handle(self, data: Any, context: Any) -> Any:
        """Answer a batch; the groups belong to this call, whatever else runs while it waits."""
        self.context = context
        groups = [self._read(row) for row in data]
        good = [group for group in groups if isinstance(group, Group)]
        answers = iter(self._answers(good, context) if good else [])
        return [
            self.pack(group, next(answers), index) if isinstance(group, Group) else group
            for index, group in enumerate(groups)
        ]

    def unpack(self, row: Any) -> Group:
        """What a row brings; ValueError says what is wrong with it."""
        raise NotImplementedError

    def pack(self, group: Group, answers: list[Any], index: int) -> Any:
        """The answer of the request at `index`."""
        raise NotImplementedError

    def _read(self, row: Any) -> Group | PredictionException:
        try:
            return self.unpack(row)
        except ValueError as error:
            return PredictionException(str(error), 400)

    def _answers(self, groups: list[Group], context: Any) -> list[list[Any]]:
        answers = self._handle_fn([item for group in groups for item in group.items], context)
        if not isinstance(answers, list) or len(answers) != sum(len(group.items) for group in groups):
            raise ValueError("number of batch response mismatched")
        rest = iter(answers)
        return [[next(rest) for _ in group.items] for group in groups]


def content_of(row: Any) -> Any:
    """What a row has under `data` or `body`."""
    content = row.get("data")
    return row.get("body") if content is None else content


def object_of(row: Any) -> dict[str, Any]:
    """The JSON object that a row has; ValueError where it is none."""
    content = content_of(row)
    if isinstance(content, (bytes, bytearray, str)):
        try:
            content = json.loads(content)
        except RecursionError as error:
            raise ValueError("the request is nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError("the request is no JSON object under data or body")  # noqa: TRY004  # a wrong value
    return content
