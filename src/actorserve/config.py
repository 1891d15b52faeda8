"""The configuration as data: what config.toml may say, every default, every unit, and its errors.

`docs/configuration.md` is generated from these models (`just docs`). A key enters with its feature; an
unknown key is an error that names the nearest known one. Files are read here and nowhere else; nothing
here starts, opens or imports what the configuration names.
Over 250 lines: the tables stand beside the words of their errors.
"""

from __future__ import annotations

import copy
import difflib
import json
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from actorserve import config_defaults, config_versions
from actorserve.config_application import Application
from actorserve.config_defaults import EVERY, MOST_WORKERS, Defaults, Workers
from actorserve.config_listener import Listener, Tls
from actorserve.config_servicer import Replicas, Servicer, check_servicers
from actorserve.config_types import (
    AUTO,
    NAME,
    NAME_RULE,
    Folder,
    Folders,
    Table,
    Texts,
    check_device,
    check_handler,
    is_metadata_key,
    is_name,
    is_packed,
    is_variable,
)
from actorserve.errors import ConfigError

SERVICES = ("inference", "management", "health", "reflection", "servicers", "predict", "ray", "applications")
DEFAULT_LISTENERS: dict[str, dict[str, Any]] = {
    "inference": {"address": "127.0.0.1:7070", "services": ["inference", "health", "reflection"]},
    "management": {"address": "127.0.0.1:7071", "services": ["management"]},
}
NOT_OF_THE_FILE = frozenset({"folder", "optional"})
STATE = "state"
"""The `server.state_dir` of a file that names none."""
MOST_THREADS = 1024


class Server(Table):
    """The server as a whole."""

    state_dir: Folder | None = Field(
        default=None,
        description='Folder that remembers what the management API has changed (docs/state.md); "": nothing is '
        "remembered. Default: `state` beside the config file; without a file, nothing.",
    )
    model_store: Folder = Field(
        default=Path("models"),
        description="Folder that RegisterModel may load models from; relative to the config file.",
    )
    allowed_urls: Texts = Field(
        default=(),
        description="Regular expressions of the URLs (`http`, `https`, `file`) that RegisterModel may fetch from. One "
        "must match a URL as a whole, whatever its case; empty: nothing is fetched (docs/archives.md).",
    )
    cache_dir: Folder = Field(
        default_factory=lambda: Path.home() / ".cache" / "actorserve",
        description="Folder for converted weights and for the venvs of models. Default: `~/.cache/actorserve`.",
    )
    max_archive_bytes: int = Field(
        default=16 << 30, ge=1, le=1 << 50, description="Largest archive of a model, in bytes (docs/archives.md)."
    )
    max_unpacked_bytes: int = Field(
        default=64 << 30, ge=1, le=1 << 50, description="Most bytes that one archive may hold unpacked."
    )
    max_archive_files: int = Field(
        default=10_000, ge=1, le=1_000_000, description="Most files and folders in one archive."
    )
    max_archive_ratio: int = Field(
        default=200,
        ge=1,
        le=10_000,
        description="Most that an archive may grow in unpacking, as a multiple of its size; 64 MiB are always allowed.",
    )
    install_archive_requirements: bool = Field(
        default=False,
        description="Install the requirements file that an archive's manifest names. It runs pip, so it is asked for.",
    )
    download_timeout_s: float = Field(
        default=3600.0, gt=0, le=86400, description="Seconds that one download may take in all."
    )
    download_stall_timeout_s: float = Field(
        default=30.0, gt=0, le=3600, description="Seconds that a download may wait for a connection, or for a byte."
    )
    max_downloads: int = Field(default=4, ge=1, le=1000, description="Downloads at once; more wait for their turn.")
    grace_s: float = Field(
        default=30.0,
        ge=0,
        le=86400,
        description="Seconds that running requests get to finish when the server or a model stops.",
    )
    stable_after_s: float = Field(
        default=60.0,
        gt=0,
        le=86400,
        description="Seconds in READY after which a worker's earlier failures are forgotten.",
    )

    model_api: bool = Field(
        default=True, description="Let RegisterModel and UnregisterModel be called; false: PERMISSION_DENIED."
    )
    registered_workers: int = Field(
        default=0,
        ge=0,
        le=MOST_WORKERS,
        description="Workers of a model that RegisterModel brings without saying how many, nor its source.",
    )
    unregister_grace_s: float | None = Field(
        default=None,
        ge=0,
        le=86400,
        description="Seconds that requests get to finish when UnregisterModel ends their model. Default: `grace_s`.",
    )
    inherit_env: bool = Field(
        default=False,
        description="Let workers see all of the server's environment, rather than a short list (docs/environments.md).",
    )
    hide_env: Texts = Field(
        default=(),
        description="Regular expressions: workers see no variable whose whole name matches one, whatever else says so.",
    )
    token_expiration_min: float = Field(
        default=60.0,
        ge=0,
        le=525_600,
        description="Minutes after which the keys of a `key_file` expire; new ones replace them five minutes before. "
        "0: never.",
    )
    token_overlap_min: float = Field(
        default=60.0, ge=0, le=525_600, description="Minutes that keys stay valid after new ones have replaced them."
    )

    @field_validator("allowed_urls", "hide_env")
    @classmethod
    def _compile(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in value:
            try:
                re.compile(pattern)
            except (re.error, RecursionError, OverflowError) as error:
                raise ValueError(f"{_toml(pattern)} is no regular expression: {error}") from None
        return value

    @field_validator("state_dir", mode="before")
    @classmethod
    def _may_be_none(cls, value: Any) -> Any:
        return None if value == "" else value


class Log(Table):
    """What is logged, and how."""

    level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="The lowest level shown.")
    format: Literal["auto", "console", "json"] = Field(
        default="auto", description="`console` is for people, `json` for machines; `auto`: console on a terminal."
    )
    access: bool = Field(default=True, description="Log one line per call.")


class Model(Table):
    """One version of a model: what runs, how often, and how it is fed. NAME is the model's name, unless the key `name`
    says another: so a file may have several versions of one model, whose default is the first in the file's order.
    """

    name: str = Field(
        default="",
        pattern=NAME,
        description="The model's name. Default: the entry's NAME. No two entries have one name and version.",
    )
    source: Folder | None = Field(
        default=None,
        description="The model's folder: first on the worker's `sys.path`, and what its handler gets as `model_dir`. "
        "Or an archive (`.mar`, `.zip`, `.tar.gz`, `.tgz`), or a file (`.pt`, `.pt2`, `.safetensors`): "
        "docs/archives.md.",
    )
    handler: str = Field(
        default="",
        description="`module:Class` of the handler. May be left out where `source` names one; for an archive or a file "
        "also in TorchServe's notation.",
    )
    version: str = Field(default="1.0", pattern=NAME, description="The version's name.")
    default: bool = Field(
        default=False,
        description="The version that calls without one get, until SetDefault chooses another (docs/state.md). At most "
        "one entry of a model says so. In the config file only.",
    )
    workers: Workers = Field(default_factory=Workers, description="How many workers, as `{ min = 1, max = 4 }`.")
    target_ongoing_requests: float = Field(
        default=2.0, gt=0, le=1_000_000, description="Requests waiting or at work that one worker is meant to have."
    )
    upscale_delay_s: float = Field(
        default=30.0, ge=0, le=86400, description="Seconds that more workers must have been wanted. Never from none."
    )
    downscale_delay_s: float = Field(
        default=600.0, ge=0, le=86400, description="Seconds that fewer workers must have been wanted."
    )
    downscale_to_zero_delay_s: float | None = Field(
        default=None,
        ge=0,
        le=86400,
        description="Seconds without a request after which the last worker ends. Default: `downscale_delay_s`.",
    )
    upscaling_factor: float = Field(
        default=1.0, gt=0, le=1000, description="Part of the way to what is wanted that one change goes up."
    )
    downscaling_factor: float = Field(
        default=1.0, gt=0, le=1000, description="Part of the way that one change goes down; one worker at the least."
    )
    look_back_period_s: float = Field(
        default=0.0,
        ge=0,
        le=3600,
        description="Seconds over which the requests waiting or at work are averaged. 0: those of now.",
    )
    device: str | Texts = Field(
        default=AUTO,
        description="Where workers compute: `cpu`, `cuda:N`, a list of the latter, or `auto`: all GPUs, the CPU where "
        "there is none (docs/devices.md).",
    )
    threads: int | str = Field(
        default=1,
        description="Compute threads of a worker, 1 to 1024. `auto`: the cores shared out among all CPU workers.",
    )
    batch_size: int = Field(
        default=32, ge=1, le=65536, description="Most requests in one batch, and most streams open in one worker."
    )
    max_batch_delay_ms: float = Field(
        default=0.0,
        ge=0,
        le=600_000,
        description="Milliseconds that an idle worker waits for a fuller batch, counted from the oldest's arrival.",
    )
    weight: str = Field(
        default="count",
        description="What a request weighs in a batch: `count`, `bytes` (of its inputs), or `metadata:KEY`, the whole "
        "number in that metadata of the call. All but `count` need `max_batch_weight`.",
    )
    max_batch_weight: int = Field(
        default=0,
        ge=0,
        le=10**15,
        description="Most weight in one batch; a request above it is refused. 0: no limit. With a handler that weighs "
        "by itself, most weight of one forward.",
    )
    tenant_key: str = Field(
        default="",
        description="Metadata key of the call that names its tenant; tenants take turns. Empty: all are one.",
    )
    queue_size: int = Field(default=100, ge=1, le=1_000_000, description="Requests that may wait; more are refused.")
    job_tickets: bool = Field(
        default=False, description="Let no request wait: one that finds no idle worker is refused at once."
    )
    startup_timeout_s: float = Field(default=120.0, gt=0, description="Seconds that a worker has to become READY.")
    max_sequences: int = Field(
        default=100, ge=1, le=1_000_000, description="Stateful sequences that may be open at once; more are refused."
    )
    sequence_idle_timeout_s: float = Field(
        default=60.0, gt=0, le=86400, description="Seconds without a message after which a sequence expires."
    )
    response_timeout_s: float = Field(
        default=120.0, gt=0, description="Seconds of one call of the handler, after which the worker is killed."
    )
    max_restarts: int = Field(
        default=5, ge=0, le=1000, description="Failures in a row after which a worker is given up (FAILED)."
    )
    restart: Literal["permanent", "transient", "temporary"] = Field(
        default="transient",
        description="When a worker that ended by itself is started again: always; after a crash only; never.",
    )
    max_worker_memory_mb: int = Field(
        default=0,
        ge=0,
        le=1 << 24,
        description="Megabytes (2^20 bytes) of a worker's own memory above which it is replaced. 0: no limit.",
    )
    max_requests_per_worker: int = Field(
        default=0, ge=0, le=1 << 40, description="Requests after which a worker is replaced. 0: no limit."
    )
    path: Folders = Field(
        default=(),
        description="Folders added to the worker's `sys.path`, after the config file's and the model's own, "
        "before site-packages.",
    )
    env: dict[str, str] = Field(
        default_factory=dict, description="Environment variables of the worker (docs/environments.md)."
    )
    pass_env: Texts = Field(
        default=(),
        description="Names of the server's environment variables that the worker sees too. In the config file only.",
    )
    requirements: str | Texts = Field(
        default=(),
        description="Packages of this model alone, as pip takes them: a list, or the path of a requirements file. "
        "They are installed into a venv below `server.cache_dir`.",
    )
    install_timeout_s: float = Field(
        default=600.0, gt=0, le=86400, description="Seconds that installing `requirements` may take."
    )
    isolation: Literal["process", "thread"] = Field(
        default="process",
        description="`thread` runs a trusted handler in a thread of the server, which it can stop or crash. "
        "In the config file only.",
    )
    options: dict[str, Any] = Field(default_factory=dict, description="Handed to the handler as it is.")

    @field_validator("device")
    @classmethod
    def _is_device(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        check_device(value)
        return value

    @field_validator("threads")
    @classmethod
    def _is_count(cls, value: int | str) -> int | str:
        if value != AUTO and not (isinstance(value, int) and 1 <= value <= MOST_THREADS):
            raise ValueError(f'{_toml(value)} is wrong: it must be 1 to {MOST_THREADS}, or "{AUTO}"')
        return value

    @field_validator("tenant_key")
    @classmethod
    def _is_metadata_key(cls, value: str) -> str:
        if value and not is_metadata_key(value):
            raise ValueError(f"{_toml(value)} is no metadata key: lower-case letters, digits, '_', '.' and '-'")
        return value

    @field_validator("weight")
    @classmethod
    def _is_weight(cls, value: str) -> str:
        kind, _, key = value.partition(":")
        if value in ("count", "bytes") or (kind == "metadata" and is_metadata_key(key) and not key.endswith("-bin")):
            return value
        raise ValueError(f'{_toml(value)} is wrong: it must be "count", "bytes" or "metadata:KEY"')

    @model_validator(mode="after")
    def _weight_has_a_limit(self) -> Model:
        if self.weight != "count" and not self.max_batch_weight:
            raise ValueError(f"max_batch_weight is missing: weight = {_toml(self.weight)} is nothing without it")
        return self

    @field_validator("options")
    @classmethod
    def _travels(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name, option in value.items():
            try:
                json.dumps(option, allow_nan=False)
            except (TypeError, ValueError):
                raise ValueError(
                    f"option {name} = {option} cannot be handed to a worker; text, numbers, true, false, lists and "
                    "tables can, so write it as text"
                ) from None
        return value

    @field_validator("env", "pass_env")
    @classmethod
    def _are_variables(cls, value: Any) -> Any:
        for name in value:
            if not is_variable(name):
                raise ValueError(f"{name!r} is no name of an environment variable")
        if isinstance(value, dict) and any("\0" in text for text in value.values()):
            raise ValueError("an environment variable cannot hold a zero byte")
        return value

    @model_validator(mode="after")
    def _a_thread_has_no_environment(self) -> Model:
        given = [key for key in ("env", "pass_env", "requirements") if getattr(self, key)]
        if self.isolation == "thread" and given:
            raise ValueError(f'isolation = "thread" shares the server\'s environment: it cannot have {given[0]}')
        if self.isolation == "thread" and self.max_worker_memory_mb:
            raise ValueError('max_worker_memory_mb cannot be kept: isolation = "thread" has no memory of its own')
        return self

    @field_validator("handler")
    @classmethod
    def _names_a_class(cls, value: str, others: ValidationInfo) -> str:
        source = others.data.get("source")
        if value and not (source is not None and is_packed(source.name)):
            check_handler(value)
        return value

    @model_validator(mode="after")
    def _has_code(self) -> Model:
        if not self.handler and self.source is None:
            raise ValueError('handler is missing: name one as "module:Class"')
        return self

    @model_validator(mode="after")
    def _may_be_replaced(self) -> Model:
        for limit in ("max_worker_memory_mb", "max_requests_per_worker"):
            if self.restart == "temporary" and getattr(self, limit):
                raise ValueError(f'{limit} cannot be kept: with restart = "temporary" no worker is ever replaced')
        return self


class Config(Table):
    """The whole file."""

    server: Server = Field(default_factory=Server)
    log: Log = Field(default_factory=Log)
    listeners: dict[str, Listener] = Field(default_factory=dict)
    models: dict[str, Model] = Field(default_factory=dict)
    model_defaults: dict[str, Defaults] = Field(default_factory=dict)
    servicers: tuple[Servicer, ...] = Field(default=(), strict=False)
    applications: dict[str, Application] = Field(default_factory=dict)
    folder: Path = Field(default_factory=Path.cwd, exclude=True)
    optional: frozenset[str] = Field(default=frozenset(), exclude=True)
    """Models that nobody has named: one that is broken is left out, with a warning."""

    @model_validator(mode="after")
    def _servicers_have_a_place(self) -> Config:
        check_servicers(self.servicers, self.listeners)
        return self

    @field_validator("models", "listeners", "applications")
    @classmethod
    def _named(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if not is_name(name):
                raise ValueError(f"the name {name[:80]!r} {NAME_RULE}")
        return value

    @field_validator("models")
    @classmethod
    def _distinct(cls, value: dict[str, Model]) -> dict[str, Model]:
        known = {  # where a source may say the version, it is checked once that is opened
            entry: (model.name or entry, model.version)
            for entry, model in value.items()
            if model.source is None or "version" in model.model_fields_set
        }
        defaults = {entry: model.name or entry for entry, model in value.items() if model.default}
        if wrong := config_versions.twice(known) or config_versions.two_defaults(defaults):
            raise ValueError(wrong)
        return value

    @field_validator("model_defaults")
    @classmethod
    def _for_names(cls, value: dict[str, Defaults]) -> dict[str, Defaults]:
        for key in value:
            name, slash, version = key.partition("/")
            if key != EVERY and not (is_name(name) and (not slash or is_name(version))):
                raise ValueError(f'{key!r} is neither "{EVERY}" nor "name" nor "name/version"')
        return value

    def name_of(self, entry: str) -> str:
        """The name of an entry's model."""
        return self.models[entry].name or entry

    def of_models(self, entries: Collection[str]) -> Config:
        """The same without the other entries."""
        return self.model_copy(update={"models": {key: self.models[key] for key in self.models if key in entries}})

    def defaults_of(self, name: str, version: str) -> dict[str, Any]:
        """What `model_defaults` says of a model."""
        return config_defaults.find(self.model_defaults, name, version)


def check_distinct(versions: Mapping[str, tuple[str, str]]) -> None:
    """ConfigError where two entries, by their keys, are the same (name, version)."""
    if wrong := config_versions.twice(versions):
        raise ConfigError("models", wrong)


# --- reading ------------------------------------------------------------------------------------


def default_content() -> dict[str, Any]:
    """What is served without a file: the digits."""
    return {"models": {"digits": {"handler": "actorserve.handlers.digits:Digits"}}}


def load(path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """Read a file (None: the packaged digits) and apply `key=value` overrides; ConfigError names the key."""
    return complete(default_content() if path is None else read_toml(path), path, overrides)


def complete(
    content: dict[str, Any], path: Path | None, overrides: Sequence[str] = (), optional: Collection[str] = ()
) -> Config:
    """As `load`, of a file's content, which is changed."""
    if overrides and not content.get("listeners"):  # so that one key of a default listener can be set alone
        content["listeners"] = copy.deepcopy(DEFAULT_LISTENERS)
    if path is not None and isinstance(content.setdefault("server", {}), dict):
        content["server"].setdefault("state_dir", STATE)
    for override in overrides:
        set_key(content, override)
    return parse(content, folder=Path.cwd() if path is None else path.resolve().parent, optional=optional)


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file's content; ConfigError if there is none."""
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        raise ConfigError("", f"there is no file {path}") from None
    except IsADirectoryError:
        raise ConfigError("", f"{path} is a folder, not a file") from None
    except OSError as error:
        raise ConfigError("", f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # its grammar, its encoding, a number of thousands of digits
        raise ConfigError("", f"{path} is not TOML: {error}") from None


def set_key(content: dict[str, Any], override: str) -> None:
    """Apply one `a.b.c=value`; the value is TOML, or else text as it stands."""
    key, separator, text = override.partition("=")
    wrong = ConfigError("--set", f"{override!r} is not key=value, for example server.grace_s=5")
    if not separator or not key.strip():
        raise wrong
    try:
        given = tomllib.loads(f"{key} = {text}")
    except tomllib.TOMLDecodeError:
        try:
            given = tomllib.loads(f"{key} = {json.dumps(text, ensure_ascii=False)}")
        except tomllib.TOMLDecodeError:
            raise wrong from None
    _merge(content, given, key.strip())


def _merge(table: dict[str, Any], given: Mapping[str, Any], key: str) -> None:
    for name, value in given.items():
        if isinstance(value, dict) and name in table:
            if not isinstance(table[name], dict):
                raise ConfigError(key, f"cannot be set: {name} is {_toml(table[name])} and not a table")
            _merge(table[name], value, key)
        else:
            table[name] = value


def parse(content: Mapping[str, Any], *, folder: Path, optional: Collection[str] = ()) -> Config:
    """Validate a file's content. No listeners at all: 127.0.0.1:7070 and 127.0.0.1:7071.

    `optional`: models that may be left out where they are broken.
    """
    for key in NOT_OF_THE_FILE & content.keys():
        raise ConfigError(key, "unknown key")
    filled = {"listeners": DEFAULT_LISTENERS, **content, "folder": folder, "optional": frozenset(optional)}
    if not filled["listeners"]:
        filled["listeners"] = DEFAULT_LISTENERS
    try:
        return Config.model_validate(filled)
    except ValidationError as error:
        raise ConfigError(*first_error(error)) from None


def first_error(error: ValidationError, within: Sequence[str] = ()) -> tuple[str, str]:
    """The first thing that is wrong: its key, and the value with what would be right.

    `within`: where the validated table stands in the file.
    """
    details = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    location = [part for part in details["loc"] if part not in ("int", "str", "tuple[str, ...]")]
    key = ".".join(part for part in location if isinstance(part, str))
    match details["type"]:
        case "extra_forbidden":
            known = _known_keys((*within, *location[:-1]))
            near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.4)
            return key, "unknown key; " + (f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}")
        case "missing":
            field = _table_at((*within, *location[:-1])).model_fields[str(location[-1])]
            return key, f"is missing. {field.description}"
        case "value_error":
            return key, details["msg"].removeprefix("Value error, ")
        case _:
            return key, f"{_toml(details['input'])} is wrong: it must be {_right(details)}"


_KINDS = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a number, and not inf or nan",
    "string_type": 'text, in quotes: "..."',
    "bool_type": "true or false",
    "dict_type": "a table",
    "model_type": "a table",
    "path_type": 'a path, in quotes: "..."',
    "tuple_type": "a list: [...]",
    "too_short": "a list of at least one",
    "string_pattern_mismatch": "at most 255 letters, digits, '_', '.' and '-', and begin with a letter or a digit",
}
_LIMITS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("more than", "gt"),
    "less_than_equal": ("at most", "le"),
}


def _right(details: ErrorDetails) -> str:
    """What would be right in place of a wrong value."""
    kind, context = details["type"], details.get("ctx", {})
    if kind in _LIMITS:
        words, bound = _LIMITS[kind]
        return f"{words} {context[bound]:g}"
    if kind == "literal_error":
        return str(context["expected"]).replace("'", '"')
    return _KINDS.get(kind) or details["msg"]


def _toml(value: Any) -> str:
    """A value as one would have written it in the file, cut where it is long."""
    text = str(value).lower() if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) else str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _table_at(location: Sequence[int | str]) -> type[BaseModel]:
    """The table at a place in the file."""
    model: type[BaseModel] = Config
    tables: dict[str, type[BaseModel]] = {
        "server": Server,
        "log": Log,
        "listeners": Listener,
        "models": Model,
        "model_defaults": Defaults,
        "workers": Workers,
        "tls": Tls,
        "servicers": Servicer,
        "replicas": Replicas,
        "applications": Application,
    }
    for depth, part in enumerate(location):
        if depth != 1:  # the second part is a name that the user gave
            model = tables.get(str(part), model)
    return model


def _known_keys(location: Sequence[int | str]) -> list[str]:
    """The keys of the table at a place in the file."""
    return [name for name in _table_at(location).model_fields if name not in NOT_OF_THE_FILE]


def tables() -> Iterator[tuple[str, type[BaseModel]]]:
    """Every table with its heading, in the order of the file: what the documentation is made from."""
    yield "[server]", Server
    yield "[log]", Log
    yield "[listeners.NAME]", Listener
    yield "tls", Tls
    yield "[models.NAME]", Model
    yield "workers", Workers
    yield "[model_defaults.NAME]", Defaults
    yield "[[servicers]]", Servicer
    yield "replicas", Replicas
    yield "[applications.NAME]", Application
