"""What is different between two configurations, decided purely: what a running server takes over, what it cannot.

What must not live here: doing it (reloader.py), what becomes of models (actors/reload_rules.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields

from pydantic import BaseModel

from actorserve.config import Config
from actorserve.config_defaults import EVERY
from actorserve.config_listener import Listener
from actorserve.services.transport.limits import Limits

LIMITS = frozenset(field.name for field in fields(Limits)) - {"max_send_bytes", "connection_rate"}
"""Those of a connection: not what bounds a worker's answer too, nor how often connections come."""
AT_RUN_TIME = LIMITS | {"tokens_file", "auth_exempt"}
"""The keys of a listener that a new connection, or the next call, goes by."""


def changed_keys(old: BaseModel, new: BaseModel) -> list[str]:
    """The keys whose values differ, in the order of the documentation."""
    return [key for key in type(old).model_fields if getattr(old, key) != getattr(new, key)]


def needs_restart(old: Config, new: Config) -> list[str]:
    """The keys that have changed, and that only a restart can take up."""
    return [
        f"{name}.{key}" for name in ("server", "log") for key in changed_keys(getattr(old, name), getattr(new, name))
    ] + list(_listeners_that_restart(old.listeners, new.listeners))


def _listeners_that_restart(old: dict[str, Listener], new: dict[str, Listener]) -> Iterator[str]:
    for name in {**old, **new}:
        if name not in old or name not in new:
            yield f"listeners.{name}"
            continue
        taken_up = takes_up(old[name], new[name])
        for key in changed_keys(old[name], new[name]):
            if key not in taken_up:
                yield f"listeners.{name}.{key}"


def takes_up(old: Listener, new: Listener) -> list[str]:
    """The keys of a listener that have changed and are taken up at run time."""
    without_tokens = None in (old.tokens_file, new.tokens_file)
    lost = {"tokens_file", "auth_exempt"} if without_tokens else set()
    return [key for key in changed_keys(old, new) if key in AT_RUN_TIME - lost]


def as_it_runs(old: Listener, new: Listener) -> Listener:
    """The listener as it runs once that is taken up."""
    return old.model_copy(update={key: getattr(new, key) for key in takes_up(old, new)})


def model_changes(old: Config, new: Config) -> Iterator[tuple[str, str]]:
    """Each entry that differs: its key, and `new`, `removed`, or the keys that have changed. No values: secrets."""
    for table in ("model_defaults", "models"):
        before, after = getattr(old, table), getattr(new, table)
        for name in {**before, **after}:
            if name not in before:
                yield f"{table}.{name}", "new"
            elif name not in after:
                yield f"{table}.{name}", "removed"
            elif keys := changed_keys(before[name], after[name]):
                yield f"{table}.{name}", ", ".join(keys)


def servicer_changes(old: Config, new: Config) -> Iterator[tuple[str, str]]:
    """The same for the servicers, by their names."""
    before, after = ({one.label: one for one in settings.servicers} for settings in (old, new))
    for name in {**before, **after}:
        if name not in before:
            yield f"servicers.{name}", "new"
        elif name not in after:
            yield f"servicers.{name}", "removed"
        elif keys := changed_keys(before[name], after[name]):
            yield f"servicers.{name}", ", ".join(keys)


def application_changes(old: Config, new: Config) -> Iterator[tuple[str, str]]:
    """The same for the applications; a deployment whose options differ is named."""
    before, after = old.applications, new.applications
    for name in {**before, **after}:
        if name not in before:
            yield f"applications.{name}", "new"
        elif name not in after:
            yield f"applications.{name}", "removed"
        elif keys := changed_keys(before[name], after[name]):
            was, now = before[name].deployments, after[name].deployments
            deployments = [f"deployments.{one}" for one in {**was, **now} if was.get(one) != now.get(one)]
            yield f"applications.{name}", ", ".join([one for one in keys if one != "deployments"] + deployments)


def text_of(settings: Config, entry: str, version: str) -> str:
    """The text of an entry, which has this version, in a form that only changes with what runs.

    That is the entry, but for what it is called and whether it is the default, and what `model_defaults` says of it.
    """
    name = settings.name_of(entry)
    text = settings.models[entry].model_dump_json(exclude_unset=True, exclude={"name", "default"})
    for key, defaults in settings.model_defaults.items():
        if key in (EVERY, name, f"{name}/{version}") and defaults.model_fields_set:
            text += f" {json.dumps(key)}: {defaults.model_dump_json(exclude_unset=True)}"
    return text
