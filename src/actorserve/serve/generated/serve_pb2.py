"""The messages of Ray Serve's schema, under the name that Ray gives this module. They are those of proto/."""

from actorserve.proto.ray_serve_pb2 import *  # noqa: F403  # whatever the contract has
from actorserve.proto.ray_serve_pb2 import DESCRIPTOR  # noqa: F401  # as protoc's modules have it
