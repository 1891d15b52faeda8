"""What an application is made of: found by its import path, or read from the blob that a script has sent.

What lives here: the definition of each deployment, and what the server reads of an application that is imported.
What must not: schemas (deployment_schema.py), making an instance (instance.py).
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from actorserve.errors import LoadFailed
from actorserve.handlers.rpc.source import digest_of, digest_of_arguments
from actorserve.serve.definition import Application
from actorserve.serve.exceptions import OptionError
from actorserve.serve.graph import Built, build

Definition = tuple[Any, tuple[Any, ...], dict[str, Any]]
"""A deployment's class or function, and what it is bound to."""


def parts_of(import_path: str) -> tuple[str, str]:
    """The module and the name in it, of "module:name" or Ray's "module.name"."""
    module, colon, name = import_path.partition(":")
    if not colon:
        module, _, name = import_path.rpartition(".")
    return module, name


def import_application(import_path: str, args: Mapping[str, Any]) -> Application:
    """The bound deployment that "module:name" (or Ray's "module.name") names, or that a function of it gives."""
    module_name, name = parts_of(import_path)
    try:
        found: Any = importlib.import_module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise LoadFailed(f"import_path {import_path!r}: there is no module {error.name}") from None
        raise
    except AttributeError as error:
        raise LoadFailed(f"import_path {import_path!r}: {error}") from None
    if inspect.isfunction(found):
        found = found(dict(args)) if inspect.signature(found).parameters else found()
    if not isinstance(found, Application):
        raise LoadFailed(
            f"import_path {import_path!r} is no application: expected what a deployment's .bind(...) gives"
        )
    return found


def definition_of(options: Mapping[str, Any]) -> Callable[[str], Definition]:
    """What gives (target, args, kwargs) of a deployment by its name, from the blob or from the module."""
    if options.get("import_path"):
        built = build(import_application(options["import_path"], options.get("args") or {}), pickles=False)

        def imported(name: str) -> Definition:
            node = built.node(name)
            return node.deployment.func_or_class, node.args, dict(node.kwargs)

        return imported
    data = Path(options["blob"]).read_bytes()
    if hashlib.sha256(data).hexdigest() != options["digest"]:
        raise LoadFailed(f"{options['blob']}: the application's code is not what was sent")
    parts = pickle.loads(data)  # noqa: S301  # the script's, sent over its private socket; checked above
    return lambda name: pickle.loads(parts[name])  # noqa: S301  # as above


def described(options: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the server reads of an application that is imported; None where the script has sent it."""
    if not options.get("import_path"):
        return None
    found: Built = build(import_application(options["import_path"], options.get("args") or {}), pickles=False)
    data = found.data()
    known = {one["name"]: one for one in data["deployments"]}
    source = digest_of(parts_of(options["import_path"])[0])
    for node in found.nodes:
        known[node.name]["digest"] = f"{source}-{digest_of_arguments((node.args, dict(node.kwargs)))}"
    for name, given in (options.get("overrides") or {}).items():
        if name not in known:
            raise LoadFailed(f"deployments.{name}: the application has no such deployment, but {', '.join(known)}")
        try:
            known[name]["options"] = found.node(name).deployment.settings.with_(given).data()
        except OptionError as error:
            raise LoadFailed(f"deployments.{name}.{error}") from None
    return data
