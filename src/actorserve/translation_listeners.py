"""The `[listeners]` of a config.properties: one for inference, one for management, both as TorchServe's. Purely.

What must not live here: other tables (translation.py, translation_models.py), reading files.
"""

from __future__ import annotations

from typing import Any

from actorserve.config_types import is_loopback
from actorserve.errors import ConfigError
from actorserve.properties import Values, wrong
from actorserve.translation_machine import MOST, Machine, path_of

KEY_FILE = "key_file.json"
MOST_BYTES = 1 << 30
LISTENERS: dict[str, tuple[list[str], int]] = {
    "inference": (["inference", "health", "reflection"], 7070),
    "management": (["management"], 7071),
}
"""The services of each, and TorchServe's port."""


def listener(values: Values, machine: Machine, name: str, notes: list[str]) -> dict[str, Any]:
    """One listener's table; the notes get what is to be said of it. ConfigError."""
    services, port = LISTENERS[name]
    given_port = values.number(f"grpc_{name}_port", least=0, most=65_535)
    host = values.text(f"grpc_{name}_address", "127.0.0.1")
    if "://" in host or "/" in host:
        raise wrong(f"grpc_{name}_address", host, "a host's name or address, without a port")
    table: dict[str, Any] = {
        "address": f"{f'[{host}]' if ':' in host else host}:{port if given_port is None else given_port}",
        "services": services,
        "compatibility": "torchserve",
    }
    tokens = not values.flag("disable_token_authorization")
    if tokens:
        table["key_file"] = str(machine.folder / KEY_FILE)
    tls = _tls(values, machine)
    if tls:
        table["tls"] = tls
    lacking = " and without ".join(word for word, has in (("TLS", tls), ("tokens", tokens)) if not has)
    if lacking and not is_loopback(host):
        table["insecure"] = True
        notes.append(f"grpc_{name}_address: {host} is open to the network without {lacking}")
    return table | _sizes(values, notes if name == "inference" else []) | _ages(values, name)


def _tls(values: Values, machine: Machine) -> dict[str, str]:
    if not values.flag("enable_grpc_ssl"):
        return {}
    for key in ("certificate_file", "private_key_file"):
        if not values.text(key):
            raise ConfigError(key, "is missing: enable_grpc_ssl needs certificate_file and private_key_file")
    files = {"certificate": "certificate_file", "key": "private_key_file"}
    return {ours: str(path_of(values, key, machine)) for ours, key in files.items()}


def useless_tls(values: Values) -> dict[str, str]:
    """Keys of TLS where gRPC has none."""
    if values.flag("enable_grpc_ssl"):
        return {}
    keys = [key for key in ("certificate_file", "private_key_file") if values.text(key)]
    return dict.fromkeys(keys, "gRPC has TLS only with enable_grpc_ssl=true, and there is no REST API here")


def _sizes(values: Values, notes: list[str]) -> dict[str, int]:
    found = {}
    for key, ours in (("max_request_size", "max_receive_bytes"), ("max_response_size", "max_send_bytes")):
        size = values.number(key, least=1, most=MOST)
        if size is not None:
            found[ours] = min(size, MOST_BYTES)
            if size > MOST_BYTES:
                notes.append(f"{key}: {size} counts as {MOST_BYTES}, the most that there is")
    return found


def _ages(values: Values, name: str) -> dict[str, float]:
    found = {}
    for key, ours in (("age", "max_connection_age_s"), ("age_grace", "max_connection_age_grace_s")):
        age_ms = values.number(f"grpc_{name}_max_connection_{key}_ms", least=0, most=2**53)
        if age_ms is not None:
            found[ours] = age_ms / 1000
    return found
