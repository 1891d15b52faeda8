"""The envelope `kserve`: KServe's first protocol, which is the one of `json`."""

from .json import JSONEnvelope


class KServeEnvelope(JSONEnvelope):
    """See the module's docstring."""
