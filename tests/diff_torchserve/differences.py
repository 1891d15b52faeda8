"""The differences that may remain between TorchServe's answers and ours, each with its reason.

One that is listed and does not show is an error too (run.py): a list that only grows says nothing.
What must not live here: what normalising takes care of (compare.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from compare import Found


@dataclass(frozen=True)
class Difference:
    """Patterns of whole case names and whole field names, and why these may differ; and our code, if that differs."""

    cases: str
    fields: str
    reason: str
    code: str = ""

    def covers(self, found: Found) -> bool:
        """Whether a difference is this one."""
        if not re.fullmatch(self.cases, found.case):
            return False
        return found.ours == self.code if found.field == "code" else bool(re.fullmatch(self.fields, found.field))


ANSWER = r"text\.\d|msg|prediction"
LISTED = (
    Difference(
        r"results/headers and metadata",
        r"prediction",
        "the metadata of a call reaches the handler as request headers; TorchServe drops it",
    ),
    Difference(
        r"failures/code 20[14]",
        ANSWER,
        "a PredictionException with another 2xx code tears TorchServe's call; ours is OK, as with 200",
        code="OK",
    ),
    Difference(
        r"limits/input of 7 MB",
        r"text\.0",
        "fault: an oversized request is reset; ours is RESOURCE_EXHAUSTED with both sizes",
        code="RESOURCE_EXHAUSTED",
    ),
    Difference(
        r"lists/(no limit|empty|limit 0 from 1)", r"msg\..*", "fault: without a limit nothing is listed (#1901)"
    ),
    Difference(
        r"crashes/response of 7 MB",
        ANSWER,
        "fault: an answer over the limit kills the worker; ours is RESOURCE_EXHAUSTED with both sizes",
        code="RESOURCE_EXHAUSTED",
    ),
    Difference(
        r"crashes/client timeout",
        ANSWER,
        "fault: clientTimeoutInMills drops the answer and leaves the call open; deadlines are the client's here",
        code="OK",
    ),
    Difference(
        r"busy/unregistered",
        r"held\..*",
        "fault: unregistering loses the running request and the queued ones; ours are answered",
    ),
    Difference(
        r"mismatched/.*",
        rf"{ANSWER}|messages\..*",
        "fault: streams on unary handlers and the reverse kill the worker; ours are answered",
        code="OK",
    ),
    Difference(
        r"sequences.*/.*",
        r"messages\.\d+\.(keys|sequence_id)",
        "every reply of StreamPredictions2 carries its sequence's id; TorchServe's carry none",
    ),
    Difference(
        r"sequences/(without an id|empty id)",
        r"messages\..*",
        "a message without a sequence id begins a new sequence, as TorchServe means it to",
    ),
    Difference(
        r"sequences/(unknown model|empty name)",
        r"",
        "fault: after the error in the stream the call ends UNKNOWN; ours ends OK",
        code="OK",
    ),
    Difference(
        r"sequences of others/model without sequences",
        rf"{ANSWER}|messages\..*",
        "fault: a model without sequence batching ends the call at once; ours is asked",
        code="OK",
    ),
    Difference(
        r"sequences that are lost/h.*",
        r"messages\..*",
        "fault: half-close loses answers, and a handler's error is never told; ours drains and tells",
        code="OK",
    ),
    Difference(
        r"registers/s3_sse_kms",
        ANSWER,
        "nothing is fetched from S3: a field without an effect is refused, not ignored",
        code="INVALID_ARGUMENT",
    ),
    Difference(r"registers/runtime LSP", ANSWER, "TorchServe's runtime for C++ is not served", code="INVALID_ARGUMENT"),
    Difference(
        r"registers/odd name",
        ANSWER,
        "names of models are letters, digits, '_', '.' and '-': they stand in logs, metrics and files",
        code="INVALID_ARGUMENT",
    ),
    Difference(r"registers/odd name described", ANSWER, "as above: it is not there", code="NOT_FOUND"),
    Difference(r"registers/a path inside", ANSWER, "archives in folders of the store can be registered", code="OK"),
    Difference(
        r"registers/a folder without a model|archives/(nomanifest|emptymanifest|nohandler)\.mar.*",
        ANSWER,
        "fault: what has no handler is registered; ours is refused, and the text names the handler",
        code="INVALID_ARGUMENT",
    ),
    Difference(
        r"archives/(garbage\.mar|empty\.mar|climbs\.tar\.gz).*",
        ANSWER,
        "fault: what is no archive, or writes out of its folder, counts as an empty one; ours cannot be saved",
        code="INTERNAL",
    ),
    Difference(
        r"archives/(brokenyaml|textyaml)",
        ANSWER,
        "fault: a broken model-config.yaml is noticed by a worker, or escapes; ours is refused with the archive",
        code="INTERNAL",
    ),
    Difference(
        r"downloads/redirect to what is not allowed",
        ANSWER,
        "fault: an allowed URL's redirect is followed to one that is not allowed; ours checks each again",
        code="NOT_FOUND",
    ),
    Difference(
        r"loading/RuntimeError described",
        ANSWER,
        "fault: a failed synchronous registration leaves the model listed",
        code="NOT_FOUND",
    ),
    Difference(
        r"loading/scale of a version that cannot load",
        ANSWER,
        "fault: a second scale of what cannot load is said to be in progress",
        code="INTERNAL",
    ),
    Difference(r"loading/what could not be scaled", r"msg\.0\.workers\.0\.pid", "a worker that is dead has no pid"),
    Difference(r"loading/ping", r"health\.status", "fault: Ping stays Healthy with a model that cannot load"),
)

OPEN: tuple[Difference, ...] = ()
"""What is to be mended, or to be moved to the list above: `run.py` fails with these, the tests know them."""


def sort_out(
    found: Iterable[Found], cases: Iterable[str], listed: tuple[Difference, ...]
) -> tuple[list[Found], list[Difference]]:
    """What no entry covers; and the entries that covered nothing although one of their cases was compared."""
    left, used = [], set()
    for one in found:
        covering = [entry for entry in listed if entry.covers(one)]
        used.update(covering)
        if not covering:
            left.append(one)
    compared = list(cases)
    unused = [
        entry for entry in listed if entry not in used and any(re.fullmatch(entry.cases, name) for name in compared)
    ]
    return left, unused
