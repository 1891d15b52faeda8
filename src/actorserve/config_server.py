"""`[server]` and `[log]`: the server as a whole, its folders, what it may fetch, and what it logs.

What must not live here: other tables (config_listener.py, config_model.py), opening or making what is named.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from actorserve.config_defaults import MOST_WORKERS
from actorserve.config_types import Folder, Table, Texts, as_toml


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
                raise ValueError(f"{as_toml(pattern)} is no regular expression: {error}") from None
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
