"""Ray 2.1's name of the graph's input and of handles in it."""

from actorserve.serve.definition import InputNode
from actorserve.serve.handle import RayServeDAGHandle

__all__ = ["InputNode", "RayServeDAGHandle"]
