"""Packages that tests run and the project does not depend on, fetched when a test wants them and never committed.

They are unpacked without what they depend on, into a folder of pytest's cache, and stay there for the next run.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

TORCHSERVE = ("torchserve==0.12.0",)
MLFLOW = ("mlflow-torchserve==0.1.0",)
TORCHVISION = ("torchvision==0.28.0",)
CAPTUM = (
    *("captum==0.9.0", "matplotlib==3.11.2", "contourpy==1.3.3", "cycler==0.12.1", "fonttools==4.68.0"),
    *("kiwisolver==1.5.1", "pyparsing==3.3.3", "python-dateutil==4.0.0", "six==1.17.0"),
)
"""captum imports matplotlib wherever it is imported; matplotlib imports the rest."""


def fetch(cache: Path, requirements: tuple[str, ...]) -> Path:
    """The folder that these are unpacked in, as on sys.path."""
    folder = cache / requirements[0].replace("==", "-")
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as fresh:
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
            subprocess.run([*pip, "--target", f"{fresh}/all", *requirements], check=True, stdin=subprocess.DEVNULL)
            shutil.move(f"{fresh}/all", folder)
    return folder
