"""In what metrics are counted."""

from __future__ import annotations


class Units:
    """Names of units, and how a short one is written out."""

    ms = "Milliseconds"
    s = "Seconds"
    B = "Bytes"
    kB = "Kilobytes"
    MB = "Megabytes"
    GB = "Gigabytes"
    percent = "Percent"
    count = "Count"
    units: dict[str | None, str] = {  # noqa: RUF012  # handlers read it from the class
        "ms": ms,
        "s": s,
        "B": B,
        "kB": kB,
        "MB": MB,
        "GB": GB,
        "percent": percent,
        "count": count,
        "": "unit",
        None: "unit",
    }
