"""What the tables of the configuration are made of: types, names, addresses, values in words. Pure rules, no table.

What must not live here: keys and defaults (config_model.py, config_listener.py and their like).
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

MOST_NAME = 255
NAME = rf"^[A-Za-z0-9][A-Za-z0-9_.\-]{{0,{MOST_NAME - 1}}}$"
NAME_RULE = f"may hold letters, digits, '_', '.' and '-' only, at most {MOST_NAME} of them"
UNIX = "unix:"
AUTO = "auto"
ZIPS = (".mar", ".zip")
TARS = (".tar.gz", ".tgz")
MODEL_FILES = (".pt", ".pt2", ".safetensors")
PACKED = (*ZIPS, *TARS, *MODEL_FILES)
"""How the names of archives and of models' files end."""
CPU = "cpu"


# TOML has types, so "8" is not 8 and true is not 1; only what TOML has no type for is converted.
Folder = Annotated[Path, Field(strict=False), AfterValidator(Path.expanduser)]
Texts = Annotated[tuple[str, ...], Field(strict=False)]
Folders = Annotated[tuple[Folder, ...], Field(strict=False)]


class Table(BaseModel):
    """A table of the file: unknown keys are errors, values are what TOML says they are."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def is_name(name: str) -> bool:
    """Whether a model or a listener may be called so."""
    return re.fullmatch(NAME, name) is not None


def is_packed(name: str) -> bool:
    """Whether a source is an archive or a model's file, by its name, rather than a folder."""
    return name.lower().endswith(PACKED)


def is_variable(name: str) -> bool:
    """Whether an environment variable may be called so."""
    return bool(name) and not {"=", "\0"} & set(name)


def is_metadata_key(key: str) -> bool:
    """Whether a call's metadata may have this key (gRPC over HTTP/2, Custom-Metadata), as it arrives: lower case."""
    return re.fullmatch(r"[a-z0-9_.\-]+", key) is not None


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `host:port` or `[v6]:port`; ValueError says what would be right. `unix:PATH`: PATH and 0."""
    if address.startswith(UNIX) and len(address) > len(UNIX):
        return address, 0
    host, separator, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        separator = ""
    if not separator or not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError(
            f'address {address!r} is not "host:port" or "unix:PATH", for example "127.0.0.1:7070" or "[::1]:7070"'
        )
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a host."""
    if host == "localhost" or host.startswith(UNIX):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_handler(target: str) -> str:
    """ValueError unless `target` reads `module:Class`."""
    module, separator, name = target.partition(":")
    if not separator or not name.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        raise ValueError(f'handler {target!r} is not "module:Class", for example "my_package.my_module:MyHandler"')
    return target


def check_target(target: str) -> str:
    """ValueError unless `target` reads `module:name`."""
    module, separator, name = target.partition(":")
    if not separator or not name.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        raise ValueError(f'{target!r} is not "module:name", for example "fruit.service:FruitService"')
    return target


def check_device(value: str | tuple[str, ...]) -> None:
    """ValueError unless `value` reads `cpu`, `auto`, `cuda:N`, or is a list of different `cuda:N`."""
    if value in (CPU, AUTO):
        return
    names = (value,) if isinstance(value, str) else value
    wrong = next((name for name in names if not re.fullmatch(r"cuda:(0|[1-9][0-9]{0,3})", name)), None)
    if wrong is not None or not names:
        told = "a list of none" if wrong is None else f'"{wrong}"'
        raise ValueError(f'{told} is no device: "cpu", "auto", "cuda:0", or a list like ["cuda:0", "cuda:1"]')
    if len(set(names)) < len(names):
        raise ValueError(f"a device is named twice: {', '.join(names)}")


def as_toml(value: Any) -> str:
    """A value as one would have written it in the file, cut where it is long."""
    text = str(value).lower() if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) else str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
