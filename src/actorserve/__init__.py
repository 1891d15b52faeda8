"""actorserve: a PyTorch model server that speaks gRPC, built of actors on trio.

This package imports nothing when it is imported; pick a door:
`actorserve.client` to call a server, `actorserve.testing` to run one inside a test,
`actorserve.handlers.base` to write a handler, `python -m actorserve` to serve.
"""

__version__ = "0.1.0"
