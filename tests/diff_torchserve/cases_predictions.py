"""Cases of Ping and Predictions. Data only."""

from __future__ import annotations

from steps import Scenario, Step, await_ready, manage, predict, register

CODES = (200, 201, 204, 302, 0, -1, 100, 400, 401, 403, 404, 405, 408, 409, 410, 412, 413, 415, 416, 418, 422, 429, 499,
         500, 501, 502, 503, 504, 505, 507, 511, 599, 600)  # fmt: skip
RESULTS = ("text", "empty", "unicode", "bytes", "no-bytes", "bytearray", "number", "float", "none", "true", "nan",
           "dict", "list", "tuple", "nested", "empty-dict", "empty-list", "tensor", "object", "set", "key",
           "large")  # fmt: skip
WHOLES = ("dict", "text", "none", "tuple", "none-of-it", "too-many", "tensor")
FAILURES = (
    "RuntimeError broken",
    "ValueError",
    "KeyError name",
    "AssertionError no",
    "MemoryError",
    "MemoryError of this much",
    "RuntimeError CUDA out of memory",
    "ValueError CUDA error",
    "OSError disk",
    "NotImplementedError",
    "StopIteration",
    "TimeoutError late",
)
INPUTS: dict[str, dict[str, bytes]] = {
    "data": {"data": b"row"},
    "body": {"body": b"row"},
    "both": {"data": b"row", "body": b"row"},
    "none": {},
    "other": {"anything": b"1", "else": b"22", "Ünï": b"333"},
    "empty key": {"": b"row"},
    "empty value": {"data": b"row", "nothing": b""},
    "binary": {"data": b"row", "blob": bytes(range(256))},
    "large": {"data": b"row", "blob": b"x" * 4_000_000},
}


def _rows(name: str, fields: dict[str, bytes]) -> Step:
    return Step(f"input {name}", "Predictions", {"model_name": "rows", "input": fields})


def _of(name: str, model: str, version: str = "", rpc: str = "Predictions") -> Step:
    fields = {"model_name": model, "model_version": version, "input": {"data": b"echo hello"}}
    return Step(name, rpc, fields)


PING = Scenario(
    "ping",
    (
        Step("empty server", "Ping"),
        register("rows.mar", "rows"),
        Step("with a model", "Ping"),
        Step("with metadata", "Ping", metadata=(("protocol", "gRPC"), ("session_id", "12345"))),
        register("rows.mar", "workerless", workers=0),
        Step("with a model without workers", "Ping"),
    ),
)
NAMES = Scenario(
    "names",
    (
        _of("empty server", "rows"),
        register("rows.mar", "rows"),
        _of("known", "rows"),
        _of("known version", "rows", "1.0"),
        _of("unknown", "nobody"),
        _of("unknown and version", "nobody", "1.0"),
        _of("unknown version", "rows", "9.9"),
        _of("version all", "rows", "all"),
        _of("empty name", ""),
        _of("empty name and version", "", "1.0"),
        _of("odd name", "a b/c?d=ü"),
        Step("bytes that are no message", "Predictions", raw=b"\xff\xff\xff\xff"),
        Step("empty message", "Predictions", raw=b""),
        Step("sequence id in Predictions", "Predictions",
             {"model_name": "rows", "input": {"data": b"echo hello"}, "sequence_id": "one"}),
        predict("metadata", b"echo hello", metadata=(("protocol", "gRPC"), ("session_id", "12345"))),
        register("rows2.mar", "rows", step="register version 2.0"),
        predict("default of two", b"about"),
        _of("second version", "rows", "2.0"),
        manage("default", "SetDefault", model_name="rows", model_version="2.0"),
        predict("default after SetDefault", b"about"),
        _of("first version", "rows", "1.0"),
        register("rows.mar", "workerless", workers=0),
        _of("no workers", "workerless"),
        _of("no workers and version", "workerless", "1.0"),
    ),
)  # fmt: skip
RESULTS_OF = Scenario(
    "results",
    (
        register("rows.mar", "rows"),
        *(predict(name, name.encode()) for name in RESULTS),
        *(predict(f"whole {name}", f"whole-{name}".encode()) for name in WHOLES),
        *(_rows(name, fields) for name, fields in INPUTS.items()),
        predict("headers", b"headers"),
        predict("headers and metadata", b"headers", metadata=(("x-mine", "1"), ("x-other", "2"))),
        predict("about", b"about"),
        predict("identity", b"identity"),
        predict("response headers", b"dressed"),
        *(predict(f"status {code}", f"status {code}".encode()) for code in (200, 201, 302, 400, 404, 429, 500, 503)),
        predict("all status 403", b"all_status 403"),
        predict("alive afterwards", b"echo yes"),
    ),
)
FAILING = Scenario(
    "failures",
    (
        register("rows.mar", "rows"),
        *(predict(f"code {code}", f"code {code} said {code}".encode()) for code in CODES),
        predict("code without text", b"code 404 "),
        predict("code with two lines", b"code 404 one\ntwo"),
        predict("code with odd text", 'code 400 100% grün ✓ "quoted" \\ tab\t'.encode()),
        predict("code with a long text", b"code 400 " + b"long " * 200),
        predict("without a code", b"plain"),
        predict("derived", b"derived"),
        *(predict(text, f"fail {text}".encode()) for text in FAILURES),
        predict("no such word", b"there_is_no_such_word"),
        predict("alive afterwards", b"echo yes"),
    ),
)  # fmt: skip
KINDS = Scenario(
    "kinds of handlers",
    (
        register("line.mar"),
        predict("line", b"[1, 2]", "line"),
        predict("line of wrong input", b"[1, 2", "line"),
        predict("line of wrong shape", b"[1, 2, 3]", "line"),
        register("builtin.mar"),
        predict("builtin on bytes", b"[1, 2]", "builtin"),
        register("function.mar"),
        predict("function", b"", "function"),
        register("entry.mar"),
        predict("entry", b"", "entry"),
        register("batching.mar", "batching", batch_size=4, max_batch_delay=50),
        predict("batch of one", b"one", "batching"),
        predict("batch of one that fails", b"fail", "batching"),
    ),
)
LIMITS = Scenario(
    "limits",
    (
        register("queue.mar", "queue"),
        await_ready("queue"),
        predict("queue full", b"echo hello", "queue", behind=2),
        predict("queue full, stream", b"echo hello", "queue", behind=2, rpc="StreamPredictions"),
        predict("after the queue", b"echo hello", "queue"),
        register("rows.mar", "rows"),
        _rows("of 6.5 MB", {"data": b"row", "x": b"x" * 6_500_000}),
        _rows("of 7 MB", {"data": b"row", "x": b"x" * 7_000_000}),
        predict("after a large request", b"echo hello"),
    ),
)  # fmt: skip
CRASHES = Scenario(
    "crashes",
    (
        register("rows.mar", "exits"),
        predict("exit 3", b"exit 3", "exits"),
        await_ready("exits"),
        predict("after exit 3", b"echo back", "exits"),
        register("rows.mar", "talks"),
        predict("response of 6.5 MB", b"huge 6500000", "talks"),
        predict("response of 7 MB", b"huge 7000000", "talks"),
        register("impatient.mar"),
        predict("client timeout", b"late 2", "impatient", patience_s=8.0),
        register("ticket.mar"),
        await_ready("ticket"),
        predict("with a ticket", b"echo hello", "ticket"),
        predict("without a ticket", b"echo hello", "ticket", behind=1, patience_s=10.0),
        register("rows.mar", "leaves"),
        predict("sys.exit 0", b"leave 0", "leaves"),
        register("rows.mar", "hangs", response_timeout=2),
        predict("response timeout", b"late 300", "hangs"),
    ),
)
SCENARIOS = (PING, NAMES, RESULTS_OF, FAILING, KINDS, LIMITS)
LAST = (CRASHES,)
