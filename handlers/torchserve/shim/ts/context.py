"""What a handler is told about its model and its requests, and what it says beside its answers.

There is one Context in a worker, as handlers keep things on it. What belongs to one call of `handle` (ids, headers,
statuses) is its `Call`; the loader puts the right one in place before model code runs on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Sink = Callable[[Sequence[Any], Mapping[int, str], str, int], None]


class RequestProcessor:
    """One request's headers, and the status and headers of its answer."""

    def __init__(self, request_header: Mapping[str, Any]) -> None:
        self._request = dict(request_header)
        self._status: tuple[int, str] = (200, "")
        self._response: dict[str, str] = {}

    def get_request_property(self, key: str) -> Any:
        """A header, None where it was not sent. gRPC's names are lower case, so another case finds it too."""
        return self._request.get(key, self._request.get(key.lower()))

    def get_request_properties(self) -> dict[str, Any]:
        """All headers."""
        return self._request

    def report_status(self, code: int, reason_phrase: str | None = None) -> None:
        """Set the answer's status."""
        self._status = (code, reason_phrase or "")

    def get_response_status_code(self) -> int:
        """The answer's code, 200 until it is set."""
        return self._status[0]

    def get_response_status_phrase(self) -> str:
        """What was set beside the code."""
        return self._status[1]

    def add_response_property(self, key: str, value: str) -> None:
        """Set a header of the answer."""
        self._response[key] = value

    def get_response_headers(self) -> dict[str, str]:
        """The answer's headers."""
        return self._response

    def get_response_header(self, key: str) -> str | None:
        """One header of the answer, None where it was not set."""
        return self._response.get(key)


class Call:
    """One call of `handle`: its requests' ids and processors, by position."""

    def __init__(self, request_ids: dict[int, str], request_processor: list[RequestProcessor]) -> None:
        self.request_ids = request_ids
        self.request_processor = request_processor


class Context:
    """A model's facts (see `system_properties`) and the call that runs."""

    header_key_sequence_id = "ts_request_sequence_id"
    header_key_sequence_start = "ts_request_sequence_start"
    header_key_sequence_end = "ts_request_sequence_end"

    def __init__(
        self,
        model_name: str,
        model_dir: str,
        manifest: dict[str, Any],
        batch_size: int,
        gpu: int | None,
        mms_version: str,
        limit_max_image_pixels: bool = True,  # noqa: FBT002  # handlers' tests pass it so
        metrics: Any = None,
        model_yaml_config: dict[str, Any] | None = None,
    ) -> None:
        self.model_name = model_name
        self.manifest = manifest
        self.metrics = metrics
        self.model_yaml_config = model_yaml_config if model_yaml_config is not None else {}
        self.stopping_criteria: Any = None
        self.cl_socket = None
        self.call = Call({}, [])
        self.sink: Sink | None = None
        self._system_properties = {
            "model_dir": model_dir,
            "gpu_id": gpu,
            "batch_size": batch_size,
            "server_name": "MMS",
            "server_version": mms_version,
            "limit_max_image_pixels": limit_max_image_pixels,
        }

    @property
    def system_properties(self) -> dict[str, Any]:
        """model_dir (str), gpu_id (int or None), batch_size, server_name, server_version, limit_max_image_pixels."""
        return self._system_properties

    @property
    def request_ids(self) -> dict[int, str]:
        """The requests' ids by position in the batch."""
        return self.call.request_ids

    @request_ids.setter
    def request_ids(self, ids: dict[int, str]) -> None:
        self.call.request_ids = ids

    @property
    def request_processor(self) -> list[RequestProcessor]:
        """The requests' processors by position in the batch."""
        return self.call.request_processor

    @request_processor.setter
    def request_processor(self, processors: list[RequestProcessor]) -> None:
        self.call.request_processor = processors

    def get_request_id(self, idx: int = 0) -> str | None:
        """The id of one request."""
        return self.request_ids.get(idx)

    def get_request_header(self, idx: int, key: str) -> Any:
        """One header of one request, None where it was not sent."""
        return self.request_processor[idx].get_request_property(key)

    def get_all_request_header(self, idx: int) -> dict[str, Any]:
        """All headers of one request."""
        return self.request_processor[idx].get_request_properties()

    def set_response_content_type(self, idx: int, value: str) -> None:
        """Say what an answer is."""
        self.set_response_header(idx, "content-type", value)

    def get_response_content_type(self, idx: int) -> str | None:
        """What `set_response_content_type` said."""
        return self.get_response_headers(idx).get("content-type")

    def get_response_status(self, idx: int) -> tuple[int, str]:
        """Code and phrase of an answer."""
        processor = self.request_processor[idx]
        return processor.get_response_status_code(), processor.get_response_status_phrase()

    def set_response_status(self, code: int = 200, phrase: str = "", idx: int = 0) -> None:
        """End one item with a code in HTTP's numbers."""
        self.request_processor[idx].report_status(code, phrase)

    def set_all_response_status(self, code: int = 200, phrase: str = "") -> None:
        """End every item with a code in HTTP's numbers."""
        for processor in self.request_processor:
            processor.report_status(code, phrase)

    def get_response_headers(self, idx: int) -> dict[str, str]:
        """The headers of one answer."""
        return self.request_processor[idx].get_response_headers()

    def set_response_header(self, idx: int, key: str, value: str) -> None:
        """Set a header of one answer."""
        self.request_processor[idx].add_response_property(key, value)

    def get_sequence_id(self, idx: int) -> str:
        """The sequence that one request belongs to, "" for none."""
        return self.get_request_header(idx, self.header_key_sequence_id) or ""
