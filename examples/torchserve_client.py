"""Call a server as TorchServe's published gRPC client does: its commands, its requests, its metadata; and the others.

Run: python examples/torchserve_client.py infer MODEL FILE
         infer_stream MODEL FILE
         infer_stream2 MODEL SEQUENCE_ID FILE,FILE,...
         register MODEL [MODEL,MODEL,...]     of these the archive is in the model store; else it is TorchServe's own
         unregister MODEL [VERSION]
     and what that client lacks:
         ping
         scale MODEL WORKERS
         list
         describe MODEL [VERSION]             "all": every version
         set_default MODEL VERSION
with --auth-token TOKEN, and --inference or --management HOST:PORT where the server is elsewhere.
What must not live here: anything of the server but its message types; they are TorchServe's.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.empty_pb2 import Empty

from actorserve.proto import management_pb2 as management
from actorserve.proto.inference_pb2 import PredictionResponse, PredictionsRequest, TorchServeHealthResponse

INFERENCE = "/org.pytorch.serve.grpc.inference.InferenceAPIsService/"
MANAGEMENT = "/org.pytorch.serve.grpc.management.ManagementAPIsService/"
ARCHIVES = "https://torchserve.pytorch.org/mar_files/"
Metadata = tuple[tuple[str, str], ...]


def metadata(token: str | None) -> Metadata:
    """What goes along with every call."""
    always = (("protocol", "gRPC"), ("session_id", "12345"))
    return (*always, ("authorization", f"Bearer {token}")) if token else always


def infer(channel: grpc.Channel, model: str, file: Path, meta: Metadata) -> None:
    """One question, one answer."""
    call = channel.unary_unary(
        INFERENCE + "Predictions", PredictionsRequest.SerializeToString, PredictionResponse.FromString
    )
    answer = call(PredictionsRequest(model_name=model, input={"data": file.read_bytes()}), metadata=meta)
    print(answer.prediction.decode())


def infer_stream(channel: grpc.Channel, model: str, file: Path, meta: Metadata) -> None:
    """One question, many answers."""
    call = channel.unary_stream(
        INFERENCE + "StreamPredictions", PredictionsRequest.SerializeToString, PredictionResponse.FromString
    )
    for answer in call(PredictionsRequest(model_name=model, input={"data": file.read_bytes()}), metadata=meta):
        print(answer.prediction.decode(), flush=True)


def infer_stream2(channel: grpc.Channel, model: str, sequence: str, files: list[Path], meta: Metadata) -> None:
    """A sequence: each file is a message, each message has its reply, and an error is a reply too."""
    call = channel.stream_stream(
        INFERENCE + "StreamPredictions2", PredictionsRequest.SerializeToString, PredictionResponse.FromString
    )

    def messages() -> Iterator[PredictionsRequest]:
        for file in files:
            yield PredictionsRequest(model_name=model, sequence_id=sequence, input={"data": file.read_bytes()})

    for reply in call(messages(), metadata=meta):
        failed = reply.HasField("status")
        text = f"status {reply.status.code}: {reply.status.message}" if failed else reply.prediction.decode()
        print(f"{reply.sequence_id}: {text}", flush=True)


def ping(channel: grpc.Channel, meta: Metadata) -> None:
    """Whether every model has its workers."""
    call = channel.unary_unary(INFERENCE + "Ping", Empty.SerializeToString, TorchServeHealthResponse.FromString)
    print(call(Empty(), metadata=meta).health)


def manage(channel: grpc.Channel, given: argparse.Namespace, meta: Metadata) -> None:
    """A call of the management API: its answer is a text."""
    request = request_of(given)
    rpc = type(request).__name__.removesuffix("Request")
    call = channel.unary_unary(
        MANAGEMENT + rpc, type(request).SerializeToString, management.ManagementResponse.FromString
    )
    print(call(request, metadata=meta).msg)


def request_of(given: argparse.Namespace) -> Any:
    """What is asked of the management API."""
    match given.command:
        case "register":  # one worker; answered once it is ready
            url = f"{given.model}.mar" if given.model in given.local else f"{ARCHIVES}{given.model}.mar"
            return management.RegisterModelRequest(url=url, initial_workers=1, synchronous=True, model_name=given.model)
        case "unregister":  # answered once its requests are
            return management.UnregisterModelRequest(model_name=given.model, model_version=given.version)
        case "scale":
            return management.ScaleWorkerRequest(model_name=given.model, min_worker=given.workers, synchronous=True)
        case "describe":
            return management.DescribeModelRequest(model_name=given.model, model_version=given.version)
        case "set_default":
            return management.SetDefaultRequest(model_name=given.model, model_version=given.version)
        case _:
            return management.ListModelsRequest()


def names(text: str) -> list[str]:
    """A list with commas."""
    return text.split(",")


COMMANDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "infer": ("one question, one answer", ("model", "file")),
    "infer_stream": ("one question, many answers", ("model", "file")),
    "infer_stream2": ("a sequence: each file is a message, and has its reply", ("model", "sequence_id", "files")),
    "register": ("have a model served by one worker", ("model", "local")),
    "unregister": ("answer what is asked already, and no more", ("model", "version")),
    "ping": ("whether every model has its workers", ()),
    "scale": ("set the number of workers", ("model", "workers")),
    "list": ("the models", ()),
    "describe": ("one model: its settings and workers", ("model", "version")),
    "set_default": ("the version that is meant where none is named", ("model", "version")),
}
ARGUMENTS: dict[str | tuple[str, str], dict[str, Any]] = {
    "file": {"type": Path},
    "files": {"type": names, "metavar": "FILE,FILE,..."},
    "local": {"type": names, "nargs": "?", "default": [], "metavar": "MODEL,MODEL,..."},
    "workers": {"type": int},
    "version": {"nargs": "?", "default": ""},
    ("set_default", "version"): {},
}


def parse() -> argparse.Namespace:
    """The command line."""
    everywhere = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)  # before or after COMMAND
    everywhere.add_argument("--auth-token", metavar="TOKEN")
    everywhere.add_argument("--inference", metavar="HOST:PORT", help="localhost:7070")
    everywhere.add_argument("--management", metavar="HOST:PORT", help="localhost:7071")
    parser = argparse.ArgumentParser(
        description="Call a server as TorchServe's gRPC client does.", parents=[everywhere]
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (text, arguments) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text, parents=[everywhere])
        for argument in arguments:
            command.add_argument(argument, **ARGUMENTS.get((name, argument), ARGUMENTS.get(argument, {})))
    defaults = {"auth_token": None, "inference": "localhost:7070", "management": "localhost:7071"}
    return argparse.Namespace(**{**defaults, **vars(parser.parse_args())})


def run(given: argparse.Namespace) -> None:
    """Make the call."""
    meta = metadata(given.auth_token)
    address = given.inference if given.command.startswith(("infer", "ping")) else given.management
    with grpc.insecure_channel(address) as channel:
        match given.command:
            case "infer":
                infer(channel, given.model, given.file, meta)
            case "infer_stream":
                infer_stream(channel, given.model, given.file, meta)
            case "infer_stream2":
                infer_stream2(channel, given.model, given.sequence_id, list(map(Path, given.files)), meta)
            case "ping":
                ping(channel, meta)
            case _:
                manage(channel, given, meta)


def main() -> None:
    """Exit with 1 and one line where it fails."""
    try:
        run(parse())
        sys.stdout.flush()
    except grpc.RpcError as error:
        sys.exit(f"{error.code().name}: {' '.join((error.details() or '').split())}")
    except BrokenPipeError:  # whoever reads this has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        sys.exit(f"cannot read {error.filename}: {error.strerror}")


if __name__ == "__main__":
    main()
