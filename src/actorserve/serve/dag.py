"""Ray's second name of the graph's input: `from actorserve.serve.dag import InputNode`."""

from actorserve.serve.definition import InputNode

__all__ = ["InputNode"]
