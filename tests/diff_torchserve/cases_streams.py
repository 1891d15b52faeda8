"""Cases of StreamPredictions and StreamPredictions2. Data only."""

from __future__ import annotations

from typing import Any

from steps import Scenario, Step, predict, register

WORDS = ("three", "kinds", "empty", "many", "refuse at once", "raise", "refuse")


def _stream(name: str, data: bytes, model: str = "streams", **more: Any) -> Step:
    return predict(name, data, model, rpc="StreamPredictions", **more)


def say(model: str, data: bytes, sequence: str | None = "one", version: str = "") -> dict[str, Any]:
    """A message of StreamPredictions2."""
    fields = {"model_name": model, "model_version": version, "input": {"data": data}}
    return fields if sequence is None else fields | {"sequence_id": sequence}


def _talk(name: str, *messages: dict[str, Any], **more: Any) -> Step:
    return Step(name, "StreamPredictions2", messages=messages, **({"patience_s": 8.0} | more))


STREAMS = Scenario(
    "streams",
    (
        register("streams.mar", "streams"),
        *(_stream(word, word.encode()) for word in WORDS),
        _stream("three again", b"three"),
        _stream("unknown model", b"three", "nobody"),
        _stream("empty name", b"three", ""),
        Step("unknown version", "StreamPredictions",
             {"model_name": "streams", "model_version": "9", "input": {"data": b"three"}}),
        Step("known version", "StreamPredictions",
             {"model_name": "streams", "model_version": "1.0", "input": {"data": b"three"}}),
        _stream("metadata", b"three", metadata=(("protocol", "gRPC"), ("session_id", "12345"))),
        Step("bytes that are no message", "StreamPredictions", raw=b"\xff\xff\xff\xff"),
        register("rows.mar", "workerless", workers=0),
        _stream("no workers", b"three", "workerless"),
    ),
)  # fmt: skip
SEQUENCES = Scenario(
    "sequences",
    (
        register("sequences.mar", "sequences"),
        _talk("one message", say("sequences", b"sequence 1")),
        _talk("three in turn", *(say("sequences", b"sequence %d" % n, "two") for n in range(3))),
        _talk("two sequences", *(say("sequences", b"sequence %d" % n, f"s{n % 2}") for n in range(4))),
        _talk("without an id", say("sequences", b"sequence 1", None)),
        _talk("empty id", say("sequences", b"sequence 1", "")),
        _talk("no message at all"),
        _talk("unknown model", say("nobody", b"sequence 1")),
        _talk("empty name", say("", b"sequence 1")),
        _talk("unknown version", say("sequences", b"sequence 1", version="9")),
        _talk("known version", say("sequences", b"sequence 1", "versioned", version="1.0")),
    ),
)
UNSEQUENCED = Scenario(
    "sequences of others",
    (
        register("rows.mar", "rows"),
        _talk("model without sequences", say("rows", b"sequence 1")),
        register("sequences.mar", "workerless", workers=1),
    ),
)
MISMATCHED = Scenario(
    "mismatched",
    (
        register("rows.mar", "unary"),
        _stream("stream on a unary handler", b"echo hello", "unary", patience_s=20),
        register("streams.mar", "plain"),
        _stream("stream without an intermediate message", b"alone", "plain", patience_s=20),
        register("streams.mar", "streaming", response_timeout=5),
        predict("unary on a streaming handler", b"three", "streaming", patience_s=20),
    ),
)
LOST = Scenario(
    "sequences that are lost",
    (
        register("sequences.mar", "bursts"),
        _talk("half-close before the answers", *(say("bursts", b"sequence %d" % n) for n in range(3)), burst=True),
        register("sequences.mar", "codes"),
        _talk("handler refuses", say("codes", b"code 404 not here")),
        register("sequences.mar", "fails"),
        _talk("handler fails", say("fails", b"fail ValueError broken")),
    ),
)
SCENARIOS = (STREAMS, SEQUENCES, UNSEQUENCED)
LAST = (LOST, MISMATCHED)
