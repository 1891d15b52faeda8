"""The texts of a batch that transformers generates, piece by piece for all of its rows."""

from __future__ import annotations

from typing import Any

from transformers.generation.streamers import BaseStreamer, TextIteratorStreamer

ENDED = ""


class TextIteratorStreamerBatch(BaseStreamer):  # type: ignore[misc,unused-ignore]  # it ships no types
    """Pass it to `generate(streamer=...)`, which runs in a thread of its own, and iterate over it.

    An item is a list with {"text": piece} for each row; "" for a row that has ended before the others.
    """

    def __init__(
        self,
        tokenizer: Any,
        batch_size: int,
        skip_prompt: bool = False,  # noqa: FBT002  # transformers' own signature
        timeout: float | None = None,
        **decode_kwargs: Any,
    ) -> None:
        """`timeout`: longest wait for a piece in seconds (then queue.Empty); `decode_kwargs` go to the tokenizer."""
        self.batch_size = batch_size
        self.streamers = [
            TextIteratorStreamer(tokenizer, skip_prompt, timeout, **decode_kwargs) for _ in range(batch_size)
        ]

    def put(self, value: Any) -> None:
        """Take the prompts [batch] x [tokens], then one token a row. ValueError for another number of rows."""
        if value.shape[0] != self.batch_size:
            raise ValueError(f"the streamer was made for {self.batch_size} rows; generate gave {tuple(value.shape)}")
        for index, streamer in enumerate(self.streamers):
            streamer.put(value[index : index + 1])  # type: ignore[no-untyped-call,unused-ignore]

    def end(self) -> None:
        """No more will come."""
        for streamer in self.streamers:
            streamer.end()  # type: ignore[no-untyped-call,unused-ignore]

    def __iter__(self) -> TextIteratorStreamerBatch:
        return self

    def __next__(self) -> list[dict[str, str]]:
        pieces = [next(streamer, None) for streamer in self.streamers]
        if all(piece is None for piece in pieces):
            raise StopIteration
        return [{"text": ENDED if piece is None else piece} for piece in pieces]
