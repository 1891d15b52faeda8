"""Several versions of one model in the configuration: which entries cannot stand together, in words. Pure rules.

What must not live here: keys (config_model.py), which version is the default while a server runs
(actors/registry_rules.py).
"""

from __future__ import annotations

from collections.abc import Mapping


def twice(versions: Mapping[str, tuple[str, str]]) -> str:
    """What is wrong with entries, by their keys, that are the same (name, version); "" where nothing is."""
    first: dict[tuple[str, str], str] = {}
    for entry, key in versions.items():
        other = first.setdefault(key, entry)
        if other != entry:
            name, version = key
            return f"{other} and {entry} are both {name} version {version}: give one of them another version, or name"
    return ""


def two_defaults(names: Mapping[str, str]) -> str:
    """What is wrong with entries that say `default = true`, by their keys, with their models' names; "": nothing."""
    first: dict[str, str] = {}
    for entry, name in names.items():
        other = first.setdefault(name, entry)
        if other != entry:
            return f"{other} and {entry} both say default = true of {name}: one version is the default"
    return ""
