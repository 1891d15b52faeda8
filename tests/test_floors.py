"""The house: who may import whom, read from the sources.

Imports go down only, by the list below. An import under `if TYPE_CHECKING:` counts for the floors as well (a
cycle for types' sake would show a floor broken), but not for the libraries that a floor may not load, since it
loads nothing. Imports inside functions count for both.
"""

import ast
import graphlib
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("actors", "handlers", "proto", "services")

FLOORS = {
    "actorserve": 0,
    "actorserve.errors": 0,
    "actorserve.proto": 0,
    "actorserve.config": 1,
    "actorserve.config_application": 1,
    "actorserve.config_defaults": 1,
    "actorserve.config_errors": 1,
    "actorserve.config_file": 1,
    "actorserve.config_listener": 1,
    "actorserve.config_model": 1,
    "actorserve.config_server": 1,
    "actorserve.config_servicer": 1,
    "actorserve.config_tables": 1,
    "actorserve.config_types": 1,
    "actorserve.config_versions": 1,
    "actorserve.properties": 1,
    "actorserve.properties_keys": 1,
    "actorserve.translation": 1,
    "actorserve.translation_listeners": 1,
    "actorserve.translation_machine": 1,
    "actorserve.translation_models": 1,
    "actorserve.actors": 1,  # the empty package itself; every module in it is listed
    "actorserve.actors.messages": 1,
    "actorserve.actors.messages_requests": 1,
    "actorserve.actors.messages_specs": 1,
    "actorserve.actors.messages_tree": 1,
    "actorserve.actors.wire": 1,
    "actorserve.actors.wire_calls": 1,
    "actorserve.actors.wire_endings": 1,
    "actorserve.actors.wire_frames": 1,
    "actorserve.actors.wire_items": 1,
    "actorserve.actors.wire_reader": 1,
    "actorserve.actors.wire_values": 1,
    "actorserve.handlers": 2,
    "actorserve.actors.affinity": 2,
    "actorserve.actors.leases": 2,
    "actorserve.actors.autoscaling": 2,
    "actorserve.actors.batching": 2,
    "actorserve.actors.applications": 2,
    "actorserve.actors.claims": 2,
    "actorserve.actors.order": 2,
    "actorserve.actors.archives": 2,
    "actorserve.actors.progress": 2,
    "actorserve.actors.urls": 2,
    "actorserve.actors.manifest": 2,
    "actorserve.actors.overload": 2,
    "actorserve.actors.turns": 2,
    "actorserve.actors.waiters": 2,
    "actorserve.actors.envelope": 2,
    "actorserve.actors.environment": 2,
    "actorserve.actors.device": 2,
    "actorserve.actors.duplex": 2,
    "actorserve.actors.exchange": 2,
    "actorserve.actors.loading": 2,
    "actorserve.actors.reply": 2,
    "actorserve.actors.pulse": 2,
    "actorserve.actors.supervision": 2,
    "actorserve.actors.tree_text": 2,
    "actorserve.actors.registry_rules": 2,
    "actorserve.actors.reload_rules": 2,
    "actorserve.actors.asked": 3,
    "actorserve.actors.registry": 3,
    "actorserve.actors.registry_jobs": 3,
    "actorserve.actors.registry_said": 3,
    "actorserve.actors.forkserver": 3,
    "actorserve.actors.forkserver_main": 3,
    "actorserve.actors.forkservers": 3,
    "actorserve.actors.calls": 3,
    "actorserve.actors.in_hand": 3,
    "actorserve.actors.load_errors": 3,
    "actorserve.actors.install_main": 3,
    "actorserve.actors.installing": 3,
    "actorserve.actors.mailbox": 3,
    "actorserve.actors.memory": 3,
    "actorserve.actors.wear": 3,
    "actorserve.actors.process": 3,
    "actorserve.actors.sequences": 3,
    "actorserve.actors.thread_worker": 3,
    "actorserve.actors.worker_batches": 3,
    "actorserve.actors.worker_end": 3,
    "actorserve.actors.worker_engine": 3,
    "actorserve.actors.worker_items": 3,
    "actorserve.actors.worker_log": 3,
    "actorserve.actors.worker_main": 3,
    "actorserve.actors.worker_process": 3,
    "actorserve.actors.worker_thread": 3,
    "actorserve.actors.worker_sequences": 3,
    "actorserve.actors.unpacking": 3,
    "actorserve.actors.composition": 4,
    "actorserve.actors.downloading": 3,
    "actorserve.actors.fetching": 3,
    "actorserve.actors.directory": 4,
    "actorserve.actors.model_actor": 4,
    "actorserve.actors.hearing": 4,
    "actorserve.actors.holding": 4,
    "actorserve.actors.starting": 4,
    "actorserve.actors.autoscaler": 4,
    "actorserve.actors.taking": 4,
    "actorserve.actors.controls": 3,
    "actorserve.actors.applying": 5,
    "actorserve.actors.child": 5,
    "actorserve.actors.probe": 5,
    "actorserve.actors.rollout": 5,
    "actorserve.actors.model": 5,
    "actorserve.actors.model_folder": 5,
    "actorserve.actors.model_specs": 5,
    "actorserve.actors.model_store": 5,
    "actorserve.actors.sources": 5,
    "actorserve.actors.succession": 5,
    "actorserve.actors.registrar": 5,
    "actorserve.actors.retiring": 5,
    "actorserve.actors.rolling": 5,
    "actorserve.actors.roster": 5,
    "actorserve.actors.scaling": 5,
    "actorserve.actors.staffing": 5,
    "actorserve.actors.supervisor": 5,
    "actorserve.services": 6,
    "actorserve.services.transport": 6,
    "actorserve.admission": 7,
    "actorserve.client": 7,
    "actorserve.listener_services": 7,
    "actorserve.listening": 7,
    "actorserve.log": 7,
    "actorserve.parts": 7,
    "actorserve.configured": 7,
    "actorserve.reloader": 7,
    "actorserve.reloading": 7,
    "actorserve.scripted": 7,
    "actorserve.server": 7,
    "actorserve.starting": 7,
    "actorserve.servicer_places": 7,
    "actorserve.servicer_specs": 7,
    "actorserve.servicing": 7,
    "actorserve.background": 7,
    "actorserve.torchserve_config": 7,
    "actorserve.torchserve_store": 7,
    "actorserve.apps": 7,
    "actorserve.app_places": 7,
    "actorserve.app_ports": 7,
    "actorserve.app_replicas": 7,
    "actorserve.app_running": 7,
    "actorserve.file_apps": 7,
    "actorserve.file_servicers": 7,
    "actorserve.sent_apps": 7,
    "actorserve.__main__": 8,
    "actorserve.command_line": 8,
    "actorserve.console": 8,
    "actorserve.collecting": 8,
    "actorserve.screen": 8,
    "actorserve.testing": 8,
    "actorserve.serve_child": 8,
    "actorserve.serve": 8,  # its `__init__`, which names what a script uses; the modules below it run in workers too
    "actorserve.serve.running": 8,
    "actorserve.serve.process": 8,
    **dict.fromkeys(
        (
            *("actorserve.serve.batch_queue", "actorserve.serve.batch_rules", "actorserve.serve.responses"),
            *("actorserve.serve.batching", "actorserve.serve.codec", "actorserve.serve.config"),
            *("actorserve.serve.context", "actorserve.serve.dag", "actorserve.serve.definition"),
            *("actorserve.serve.deployment_graph", "actorserve.serve.drivers", "actorserve.serve.exceptions"),
            *("actorserve.serve.generated", "actorserve.serve.generated.serve_pb2"),
            *("actorserve.serve.generated.serve_pb2_grpc", "actorserve.serve.graph", "actorserve.serve.grpc_util"),
            *("actorserve.serve.handle", "actorserve.serve.multiplexing", "actorserve.serve.options"),
        ),
        2,
    ),
}
WHOLE = ("actorserve.proto", "actorserve.handlers", "actorserve.services", "actorserve.services.transport")
"""Packages that stand on one floor with everything in them."""

IN_WORKERS = (
    "actorserve.actors.worker_main",
    "actorserve.actors.worker_batches",
    "actorserve.actors.worker_engine",
    "actorserve.actors.worker_items",
    "actorserve.actors.worker_sequences",
    "actorserve.actors.forkserver_main",
    "actorserve.actors.install_main",
    "actorserve.actors.worker_thread",
)
PURE = (
    "affinity",
    "leases",
    "applications",
    "autoscaling",
    "registry_rules",
    "reload_rules",
    "batching",
    "claims",
    "manifest",
    "order",
    "overload",
    "turns",
    "device",
    "pulse",
    "tree_text",
    "progress",
    "urls",
    "supervision",
    "messages",
    "messages_requests",
    "messages_specs",
    "messages_tree",
    "loading",
    "wire",
    "wire_calls",
    "wire_endings",
    "wire_frames",
    "wire_items",
    "wire_reader",
    "wire_values",
)
SANS_IO = (
    *("frames", "grpc", "hpack", "header_blocks", "patience", "streams", "pieces", "next_write", "outgoing", "state"),
    *("connection_frames", "stream_frames", "connection"),
)
MODEL_LIBRARIES = {"torch", "numpy", "safetensors", "tokenizers", "transformers", "PIL"}


class Source:
    """One module: what it imports, where from, and whether for its types only."""

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.tree = ast.parse(path.read_text(), str(path))
        self.loaded: set[str] = set()
        self.for_types: set[str] = set()
        self._collect(self.tree, types_only=False)

    def _collect(self, node: ast.AST, *, types_only: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                for inner in child.body:
                    self._note(inner, types_only=True)
                for inner in child.orelse:
                    self._note(inner, types_only=types_only)
            else:
                self._note(child, types_only=types_only)

    def _note(self, node: ast.AST, *, types_only: bool) -> None:
        names: set[str] = set()
        if isinstance(node, ast.Import):
            names = {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if ".torchserve.shim." in self.name and node.level:
                return  # a package of its own, put on sys.path as `ts`: what it imports so is its own
            assert not node.level, f"{self.name}: imports are absolute"
            assert node.module is not None
            names = {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        (self.for_types if types_only else self.loaded).update(names)
        self._collect(node, types_only=types_only)

    def libraries(self) -> set[str]:
        """Top-level names that it loads."""
        return {name.split(".")[0] for name in self.loaded}

    def neighbours(self) -> set[str]:
        """Modules of the house that it imports, for types too."""
        return {name for name in self.loaded | self.for_types if name in SOURCES_PATHS and name != self.name}


def paths() -> dict[str, Path]:
    """Every module of the house by its name."""
    found = {}
    for path in (ROOT / "src" / "actorserve").glob("*.py"):
        found["actorserve" if path.stem == "__init__" else f"actorserve.{path.stem}"] = path
    for path in (ROOT / "src" / "actorserve" / "serve").rglob("*.py"):
        parts = [*path.relative_to(ROOT / "src").with_suffix("").parts]
        found[".".join(part for part in parts if part != "__init__")] = path
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            parts = [*path.relative_to(ROOT).with_suffix("").parts]
            found[".".join(["actorserve", *(part for part in parts if part != "__init__")])] = path
    return found


SOURCES_PATHS = paths()
SOURCES = {name: Source(name, path) for name, path in sorted(SOURCES_PATHS.items())}


def floor(name: str) -> int | None:
    """The floor on which a module stands."""
    if name in FLOORS:
        return FLOORS[name]
    package = max((whole for whole in WHOLE if name.startswith(f"{whole}.")), key=len, default=None)
    return None if package is None else FLOORS[package]


def reachable(start: str) -> set[str]:
    """Every module of the house that is loaded with one."""
    found: set[str] = set()
    queue = [start]
    while queue:
        name = queue.pop()
        if name not in found:
            found.add(name)
            queue += [other for other in SOURCES[name].loaded if other in SOURCES]
    return found


def test_every_module_has_a_floor():
    """A new module is given its floor in this list before it is merged, and the list names no module that has gone."""
    assert [name for name in SOURCES if floor(name) is None] == []
    assert [name for name in FLOORS if name not in SOURCES] == []


def test_the_page_names_every_actor():
    """docs/architecture.md has each module of actors/ on its floor, and names none that has gone."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    shown = {
        (int(number), name)
        for number, rooms in re.findall(r"^    (\d)  (.*)$", page, re.MULTILINE)
        for name in re.findall(r"\w+", rooms.split("     ")[0])
    }
    prefix = "actorserve.actors."
    actors = {(number, name.removeprefix(prefix)) for name, number in FLOORS.items() if name.startswith(prefix)}
    assert actors - shown == set()
    gone = {
        name
        for line in re.findall(r"^    [2-5]  .*actors: (.*)$", page, re.MULTILINE)
        for name in re.findall(r"\w+", re.split(r"     |\(|\* pure", line)[0])
    }
    assert gone - {name for _, name in actors} == set()


def test_imports_go_down_only():
    """A module imports from its own floor or from below, never from above; types included."""
    climbs = [
        f"{name} ({floor(name)}) imports {other} ({floor(other)})"
        for name, source in SOURCES.items()
        for other in sorted(source.neighbours())
        if (floor(other) or 0) > (floor(name) or 0)
    ]
    assert climbs == []


def test_no_cycle():
    """No two modules need each other, not even for types, also within one floor."""
    graph = {name: source.neighbours() - {"actorserve"} for name, source in SOURCES.items()}
    graphlib.TopologicalSorter(graph).prepare()


def test_transport_knows_nothing_of_models():
    """The transport imports itself and the errors alone: any grpclib service can be served by it."""
    outside = {
        f"{name} imports {other}"
        for name, source in SOURCES.items()
        if name.startswith("actorserve.services.transport.")
        for other in source.neighbours()
        if not other.startswith("actorserve.services.transport") and other != "actorserve.errors"
    }
    assert outside == set()


def test_client_needs_the_transport_alone():
    """`actorserve.client` brings in the transport, and neither actors nor handlers nor the server."""
    loaded = {name for name in reachable("actorserve.client") if not name.startswith("actorserve.services.transport")}
    assert loaded - {"actorserve.errors"} == {"actorserve.client"}


def test_handlers_know_neither_trio_nor_grpc():
    """Model code is synchronous and knows no wire: handlers import no trio, anyio, asyncio, grpclib or grpc.

    Some run a loop in their worker: TorchServe's handlers may be `async def`, and rpc/ runs users' servicers.
    """
    banned = {"trio", "anyio", "asyncio", "grpclib", "grpc", "structlog"}
    faults = {name: source.libraries() & banned for name, source in SOURCES.items() if ".handlers" in name}
    in_rpc = {name: {"asyncio", "grpclib", "grpc"} for name in faults if name.startswith("actorserve.handlers.rpc.")}
    faults = {name: found - in_rpc.get(name, set()) for name, found in faults.items()}
    faults["actorserve.handlers.torchserve.loader"] -= {"asyncio"}
    assert {name: found for name, found in faults.items() if found} == {}


def test_workers_load_neither_trio_nor_grpc():
    """What runs in a worker reaches, by all its imports, no trio, anyio, grpclib, grpc or pydantic."""
    banned = {"trio", "anyio", "asyncio", "grpclib", "grpc", "structlog", "pydantic", "google"}
    for start in IN_WORKERS:
        found = {name: SOURCES[name].libraries() & banned for name in reachable(start)}
        assert {name: bad for name, bad in found.items() if bad} == {}, start


def test_actors_know_neither_grpc_nor_torch():
    """Actors run models without knowing what they are or who asks: no grpclib, grpc, protobuf, torch."""
    banned = {"grpclib", "grpc", "google", "asyncio", "anyio"} | MODEL_LIBRARIES
    faults = {name: source.libraries() & banned for name, source in SOURCES.items() if ".actors" in name}
    assert {name: found for name, found in faults.items() if found} == {}


def test_server_loads_no_model_library():
    """Nothing that the server process loads imports torch, numpy or asyncio by itself."""
    banned = MODEL_LIBRARIES | {"asyncio"}
    for start in ("actorserve.__main__", "actorserve.testing"):
        loaded = {name for name in reachable(start) if ".proto." not in name}
        assert not [name for name in loaded if name.startswith("actorserve.handlers")]
        assert {name: SOURCES[name].libraries() & banned for name in loaded if SOURCES[name].libraries() & banned} == {}


@pytest.mark.parametrize("name", PURE)
def test_decisions_are_pure(name):
    """Batching, restarts, messages and the wire's framing know no task, clock, socket or randomness."""
    banned = {"trio", "anyio", "time", "random", "socket", "threading", "os", "structlog"}
    assert SOURCES[f"actorserve.actors.{name}"].libraries() & banned == set()


@pytest.mark.parametrize("name", SANS_IO)
def test_transport_core_is_sans_io(name):
    """The transport's core takes bytes and gives events: no task, clock, socket or log."""
    banned = {"trio", "anyio", "asyncio", "time", "socket", "ssl", "threading", "structlog", "os"}
    assert SOURCES[f"actorserve.services.transport.{name}"].libraries() & banned == set()


def test_imports_name_the_package():
    """Never `import actors`: a bare name would load a second copy of every class."""
    files = [path for folder in ("tests", "examples", "benchmarks", "tools") for path in (ROOT / folder).rglob("*.py")]
    everywhere = [*SOURCES.values(), *(Source(path.stem, path) for path in files)]
    bare = {source.name: source.libraries() & set(FOLDERS) for source in everywhere}
    assert {name: found for name, found in bare.items() if found} == {}


@pytest.mark.parametrize("folder", FOLDERS)
def test_links(folder):
    """The four folders are one: the package's are relative links to those at the top, and import as the package's."""
    link = ROOT / "src" / "actorserve" / folder
    assert link.is_symlink()
    assert link.readlink().as_posix() == f"../../{folder}"
    assert (ROOT / folder).is_dir()
    assert not (ROOT / folder).is_symlink()
    spec = importlib.util.find_spec(f"actorserve.{folder}")
    assert spec is not None
    assert spec.origin is not None
    assert Path(spec.origin).resolve() == (ROOT / folder / "__init__.py").resolve()


def test_packages_are_empty():
    """Importing a package loads nothing: every `__init__` is empty, or says no more than a docstring and a version."""
    for name, path in SOURCES_PATHS.items():
        if path.name == "__init__.py" and name != "actorserve.serve":  # what it loads: test_serve_definition
            assert not SOURCES[name].loaded, name
