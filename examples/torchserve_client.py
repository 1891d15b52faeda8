"""Call a server as TorchServe's published gRPC client does: its commands, its requests, its metadata.

Run: python examples/torchserve_client.py infer MODEL FILE
         infer_stream MODEL FILE
         infer_stream2 MODEL SEQUENCE_ID FILE,FILE,...
         register MODEL [MODEL,MODEL,...]     of these the archive is in the model store; else it is TorchServe's own
         unregister MODEL
with --auth-token TOKEN, and --inference or --management HOST:PORT where the server is elsewhere.
What must not live here: anything of the server but its message types; they are TorchServe's.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc

from actorserve.proto.inference_pb2 import PredictionResponse, PredictionsRequest
from actorserve.proto.management_pb2 import ManagementResponse, RegisterModelRequest, UnregisterModelRequest

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


def register(channel: grpc.Channel, model: str, local: list[str], meta: Metadata) -> None:
    """One worker; answered once it is ready."""
    call = channel.unary_unary(
        MANAGEMENT + "RegisterModel", RegisterModelRequest.SerializeToString, ManagementResponse.FromString
    )
    url = f"{model}.mar" if model in local else f"{ARCHIVES}{model}.mar"
    request = RegisterModelRequest(url=url, initial_workers=1, synchronous=True, model_name=model)
    print(call(request, metadata=meta).msg)


def unregister(channel: grpc.Channel, model: str, meta: Metadata) -> None:
    """Answered once its requests are."""
    call = channel.unary_unary(
        MANAGEMENT + "UnregisterModel", UnregisterModelRequest.SerializeToString, ManagementResponse.FromString
    )
    print(call(UnregisterModelRequest(model_name=model), metadata=meta).msg)


def names(text: str) -> list[str]:
    """A list with commas."""
    return text.split(",")


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
    for name in ("infer", "infer_stream", "infer_stream2", "register", "unregister"):
        text = (globals()[name].__doc__ or "").rstrip(".")
        command = commands.add_parser(name, help=text, description=text, parents=[everywhere])
        command.add_argument("model")
        if name == "infer_stream2":
            command.add_argument("sequence_id")
            command.add_argument("files", type=names)
        elif name == "register":
            command.add_argument("local", type=names, nargs="?", default=[], metavar="MODEL,MODEL,...")
        elif name != "unregister":
            command.add_argument("file", type=Path)
    defaults = {"auth_token": None, "inference": "localhost:7070", "management": "localhost:7071"}
    return argparse.Namespace(**{**defaults, **vars(parser.parse_args())})


def run(given: argparse.Namespace) -> None:
    """Make the call."""
    meta = metadata(given.auth_token)
    address = given.management if given.command in ("register", "unregister") else given.inference
    with grpc.insecure_channel(address) as channel:
        match given.command:
            case "infer":
                infer(channel, given.model, given.file, meta)
            case "infer_stream":
                infer_stream(channel, given.model, given.file, meta)
            case "infer_stream2":
                infer_stream2(channel, given.model, given.sequence_id, list(map(Path, given.files)), meta)
            case "register":
                register(channel, given.model, given.local, meta)
            case "unregister":
                unregister(channel, given.model, meta)


def main() -> None:
    """Exit with 1 and one line where it fails."""
    try:
        run(parse())
    except grpc.RpcError as error:
        sys.exit(f"{error.code().name}: {' '.join((error.details() or '').split())}")
    except OSError as error:
        sys.exit(f"cannot read {error.filename}: {error.strerror}")


if __name__ == "__main__":
    main()
