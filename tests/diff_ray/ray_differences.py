"""The differences that may remain between Ray Serve's answers and ours, each with its reason.

One that is listed and does not show is an error too. "fault" is Ray Serve's. What must not live here: how answers are
compared (ray_shared.py).
"""

from __future__ import annotations

from ray_shared import Difference

PART = r"(?:(?:all|held)\.\d+\.)?"
ID = PART + r"trailers\.(?:keys|(?:x-request-id|request_id)\..*)"
TEXT = PART + r"text(?:\.\d+)?"
MESSAGES = PART + r"messages\..*"
ANSWER = rf"{TEXT}|{MESSAGES}|{ID}"
DETAILS = PART + r"trailers\.grpc-status-details-bin\..*"
LISTED: tuple[Difference, ...] = (
    Difference(
        r".*",
        ID,
        "fault: request_id is lost when a call raises, times out, is shed or is not found, and in a stream without "
        "items; here it always comes back, as x-request-id too where the client sent one or the call failed",
    ),
    Difference(
        r"failures/(?!with a code).*|failures/with a code and CancelledError|metadata/request id.*|"
        r"context/(trailers|details) before an exception|"
        r"shapes/.*|batches/.*|multiplexing/.*|composition/.*|a function/a stream",
        TEXT,
        "fault: details are Ray's whole traceback, or nothing; here they are the exception's type and its text",
    ),
    Difference(
        r"(one application|two applications)/.*(lack|another case|only another).*|metadata/request id without a method|"
        r"composition/plain def that fails inside",
        TEXT,
        "fault: a method that the application lacks is INTERNAL, with a traceback",
        code="UNIMPLEMENTED",
    ),
    Difference(
        r"states/(healthz|list) before the first", ANSWER, "fault: without applications health is not OK", code="OK"
    ),
    Difference(r"one application/grpc.health.v1", ANSWER, "fault: there is no grpc.health.v1", code="OK"),
    Difference(r"reflection/v1 listing", ANSWER, "fault: reflection is v1alpha alone", code="OK"),
    Difference(r"reflection/v1alpha listing", MESSAGES, "all services are listed, the server's own too"),
    Difference(r"reflection/v1alpha unknown .*", MESSAGES, "the text of the error names the symbol or the file"),
    Difference(
        r"metadata/(no request id told|empty request id|x-request-id)",
        rf"{MESSAGES}|{ID}",
        "fault: grpc_context.request_id() is None unless the client sent one; x-request-id counts too",
    ),
    Difference(
        r"context/.*before an exception|context/.*without items",
        rf"{ANSWER}|trailers\.a\..*",
        "fault: trailers, code and details are lost before a raise, and in a stream without items",
        code="ABORTED",
    ),
    Difference(r"context/upper-case trailers", TEXT, "the text says which key, and what a key is"),
    Difference(
        r"context/reserved trailers", ANSWER, "fault: a trailer that gRPC reserves is dropped silently", code="INTERNAL"
    ),
    Difference(
        r"(failures|timeouts)/(own )?TimeoutError",
        TEXT,
        "fault: an application's own TimeoutError becomes DEADLINE_EXCEEDED",
        code="INTERNAL",
    ),
    Difference(
        r"codes/OK and raise", ANSWER, "fault: an exception after set_code(OK) is an empty answer", code="INTERNAL"
    ),
    Difference(
        r"shapes/bytes that are no message(, stream| of a call without an application)?",
        TEXT,
        "fault: a request that cannot be decoded is UNKNOWN; the caller is to blame",
        code="INVALID_ARGUMENT",
    ),
    Difference(
        r"shapes/bytes that are no message, (messages|conversation)",
        ANSWER,
        "fault: bytes that are no message are taken for the end of the messages; the caller is to blame",
        code="INVALID_ARGUMENT",
    ),
    Difference(
        r"two applications/with a space",
        TEXT,
        "HTTP/2 forbids values that begin with a space (RFC 9113, 8.2.1): the stream is reset",
        code="INTERNAL",
    ),
    Difference(
        r"cancelled (messages|conversations)/.*",
        rf"{ANSWER}",
        "fault: a client's cancel ends the stream of messages as if it were complete, or as TaskCancelledError, by "
        "chance; here it is always asyncio.CancelledError",
        code="CANCELLED",
    ),
    Difference(
        r"back-pressure/.*|broken/.*|death/.*",
        DETAILS,
        "a refused call carries google.rpc details: when to come again, why",
    ),
    Difference(
        r"batches/an exception in a slot",
        rf"{ANSWER}|all\.0\.code",
        "fault: an exception in a slot of a batch is returned as a value; here it fails its item",
        code="INTERNAL",
    ),
    Difference(
        r"composition/nested x",
        ANSWER,
        "fault: responses are resolved as whole arguments alone, not in lists",
        code="OK",
    ),
    Difference(
        r"composition/cancelled by the client seen",
        MESSAGES,
        "a response that nobody waits for any more is cancelled: asyncio.wait_for ends the call, too",
    ),
    Difference(
        r"(reconfigured|broken)/run.*",
        rf"{TEXT}|error",
        "serve.run raises DeployError, a RuntimeError, whose text has the cause",
    ),
    Difference(
        r"reconfigured/.* after the bad one|reconfigured/after the bad one",
        rf"{ANSWER}|applications\.configured",
        "fault: a reconfigure() that raises takes the application down; here the old configuration stays",
        code="OK",
    ),
    Difference(
        r"death/exits.*",
        TEXT,
        "fault: the calls of a replica that died are INTERNAL; they may be sent again: UNAVAILABLE",
        code="UNAVAILABLE",
    ),
)
OPEN: tuple[Difference, ...] = ()
"""What is to be mended, or to be moved to the list above: `run_ray.py` fails with these, the tests know them."""
