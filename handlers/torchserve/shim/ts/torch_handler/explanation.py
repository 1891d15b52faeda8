"""Where explanations come from: captum, which is imported only when somebody asks for one."""

from __future__ import annotations

import importlib
from typing import Any


def captum_attr() -> Any:
    """The module captum.attr; ImportError names captum where it is absent."""
    try:
        return importlib.import_module("captum.attr")
    except ImportError as error:
        raise ImportError(f"explanations need captum, which cannot be imported: {error}", name="captum") from error
