"""What is wrong with a configuration, in words: the key in the file, its value, and what would be right. Pure.

Pydantic says what it found; an unknown key gets the nearest known one. Rules that a table has beyond types and bounds
say their own words (config_model.py and its like). What must not live here: tables, files.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from actorserve.config_tables import known_keys, table_at
from actorserve.config_types import as_toml

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


def first_error(error: ValidationError, within: Sequence[str] = ()) -> tuple[str, str]:
    """The first thing that is wrong: its key, and the value with what would be right.

    `within`: where the validated table stands in the file.
    """
    details = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    location = [part for part in details["loc"] if part not in ("int", "str", "tuple[str, ...]")]
    key = ".".join(part for part in location if isinstance(part, str))
    match details["type"]:
        case "extra_forbidden":
            known = known_keys((*within, *location[:-1]))
            near = difflib.get_close_matches(str(location[-1]), known, n=1)
            return key, "unknown key; " + (f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}")
        case "missing":
            field = table_at((*within, *location[:-1])).model_fields[str(location[-1])]
            return key, f"is missing. {field.description}"
        case "value_error":
            return key, details["msg"].removeprefix("Value error, ")
        case _:
            return key, f"{as_toml(details['input'])} is wrong: it must be {_right(details)}"


def _right(details: ErrorDetails) -> str:
    """What would be right in place of a wrong value."""
    kind, context = details["type"], details.get("ctx", {})
    if kind in _LIMITS:
        words, bound = _LIMITS[kind]
        return f"{words} {context[bound]:g}"
    if kind == "literal_error":
        return str(context["expected"]).replace("'", '"')
    return _KINDS.get(kind) or details["msg"]
