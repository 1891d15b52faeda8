"""Asks a grpcio client's four kinds of question, and writes down all that a client can see of the answer."""

import contextlib

import grpc

OURS = ("x-request-id", "user-agent")


def visible(metadata):
    """Metadata as a sorted list, without what only tells which server it was."""
    return sorted((key, value) for key, value in metadata or () if key not in OURS)


def asked(stub, rpc, requests, *, timeout=20.0, metadata=()):
    """Everything that one call says: messages, initial metadata, code, details, trailers."""
    call = getattr(stub, rpc)
    streams_in, streams_out = rpc in ("Collect", "Talk"), rpc in ("Many", "Talk")
    question = iter(requests) if streams_in else requests[0]
    messages = []
    if streams_out:
        found = call(question, timeout=timeout, metadata=metadata)
        with contextlib.suppress(grpc.RpcError):  # written down below
            messages += [message.SerializeToString() for message in found]
    else:
        future = call.future(question, timeout=timeout, metadata=metadata)
        found = future
        with contextlib.suppress(grpc.RpcError):
            messages.append(future.result().SerializeToString())
    return {
        "messages": messages,
        "initial": visible(found.initial_metadata()),
        "code": found.code().name,
        "details": found.details(),
        "trailers": visible(found.trailing_metadata()),
    }
