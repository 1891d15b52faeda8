"""Regenerate the checked-in stubs: `just proto`.

protoc writes straight into the package through the link, then one line of each `_pb2.py` is rewritten
so that the file registers in `actorserve.proto.pool.POOL` (see there for why).

    python tools/generate_stubs.py [FOLDER]     FOLDER: where `actorserve/proto` and `actorserve/serve/generated`
                                                are written; default src
"""

from __future__ import annotations

import sys
import sysconfig
import tempfile
from pathlib import Path

import google.rpc.status_pb2
import grpc_tools
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
CONTRACTS = (
    "inference",
    "management",
    "grpc_health_v1",
    "grpc_reflection_v1",
    "grpc_reflection_v1alpha",
    "ray_serve",
    "applications",
)
RAY = "ray_serve"
"""The contract whose grpcio stubs users import too, from `actorserve.serve.generated`."""
PLUGINS = ("protoc-gen-mypy", "protoc-gen-grpclib_python")
LATE = "        import grpclib.client\n"
DEFAULT_POOL = "_descriptor_pool.Default().AddSerializedFile("


def generate(out: Path) -> None:
    """Write the stubs of every contract under `out`, which must exist."""
    site_packages = Path(google.rpc.status_pb2.__file__).parents[2]
    scripts = Path(sysconfig.get_path("scripts"))  # this interpreter's, whatever PATH says
    files = [f"actorserve/proto/{name}.proto" for name in CONTRACTS]
    code = protoc.main(
        [
            "protoc",
            f"-Iactorserve/proto={ROOT / 'proto'}",
            f"-I{Path(grpc_tools.__file__).parent / '_proto'}",
            f"-I{site_packages}",
            *(f"--plugin={name}={scripts / name}" for name in PLUGINS),
            f"--python_out={out}",
            f"--mypy_out=quiet:{out}",
            f"--grpclib_python_out={out}",
            *files,
        ]
    )
    if code:
        sys.exit(code)
    generate_grpcio(out)
    for name in CONTRACTS:
        use_own_pool(out / "actorserve" / "proto" / f"{name}_pb2.py")
        import_client_late(out / "actorserve" / "proto" / f"{name}_grpc.py")


def generate_grpcio(out: Path) -> None:
    """Write `serve_pb2_grpc.py`, as grpcio's plugin has it, beside a `serve_pb2.py` that gives the same messages."""
    folder = out / "actorserve" / "serve" / "generated"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as made:
        code = protoc.main(
            [
                "protoc",
                f"-Iactorserve/proto={ROOT / 'proto'}",
                f"--grpc_python_out={made}",
                f"actorserve/proto/{RAY}.proto",
            ]
        )
        if code:
            sys.exit(code)
        text = (Path(made) / "actorserve" / "proto" / f"{RAY}_pb2_grpc.py").read_text()
    line = f"from actorserve.proto import {RAY}_pb2 as "
    if text.count(line) != 1:
        sys.exit(f"{RAY}_pb2_grpc.py: the plugin's output has changed, expected one {line!r}")
    (folder / "serve_pb2_grpc.py").write_text(
        text.replace(line, "from actorserve.serve.generated import serve_pb2 as ")
    )


def use_own_pool(path: Path) -> None:
    """Rewrite one generated module to register in our pool."""
    text = path.read_text()
    if text.count(DEFAULT_POOL) != 1:
        sys.exit(f"{path}: protoc's output has changed, expected one {DEFAULT_POOL!r}")
    text = text.replace(DEFAULT_POOL, "POOL.AddSerializedFile(")
    text = text.replace("\nDESCRIPTOR = ", "\nfrom actorserve.proto.pool import POOL\n\nDESCRIPTOR = ")
    path.write_text(text)


def import_client_late(path: Path) -> None:
    """Rewrite one generated module so that serving does not load grpclib's client and, with it, h2: 0.1 s at start."""
    text = path.read_text()
    signature = "    def __init__(self, channel: grpclib.client.Channel) -> None:\n"
    if text.count("import grpclib.client\n") != 1 or not text.count(signature):
        sys.exit(f"{path}: the plugin's output has changed, expected a Stub and one import of grpclib.client")
    text = text.replace("import grpclib.client\n", "")
    text = text.replace(signature, signature.replace("grpclib.client.Channel", "'grpclib.client.Channel'") + LATE)
    path.write_text(text)


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "src")
