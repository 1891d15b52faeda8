"""Who answers for a name: (model, version) -> mailbox, and each model's default version.

Services read it; the supervisor alone writes it. A model that drains leaves it first.
"""

from __future__ import annotations

from collections.abc import Iterator

from actorserve.actors.mailbox import Mailbox
from actorserve.errors import NoSuchModel


class Directory:
    """See the module's docstring."""

    def __init__(self) -> None:
        self._models: dict[str, dict[str, Mailbox]] = {}
        self._defaults: dict[str, str] = {}

    def find(self, name: str, version: str = "") -> Mailbox:
        """The mailbox of a version, or of the default version; NoSuchModel."""
        versions = self._models.get(name)
        if not versions:
            raise NoSuchModel(name)
        mailbox = versions.get(version or self._defaults[name])
        if mailbox is None:
            raise NoSuchModel(name, version)
        return mailbox

    def add(self, name: str, version: str, mailbox: Mailbox) -> None:
        """Enter a version; the first of a model is its default."""
        self._models.setdefault(name, {})[version] = mailbox
        self._defaults.setdefault(name, version)

    def remove(self, name: str, version: str) -> None:
        """Take a version out. Without effect if it is not there."""
        versions = self._models.get(name, {})
        versions.pop(version, None)
        if not versions:
            self._models.pop(name, None)
            self._defaults.pop(name, None)
        elif self._defaults[name] == version:  # a registration that failed: the first of the others follows
            self._defaults[name] = next(iter(versions))

    def set_default(self, name: str, version: str) -> None:
        """Choose the version that calls without one mean; NoSuchModel. Calls that have found theirs keep it."""
        self.find(name, version)
        self._defaults[name] = version

    def default(self, name: str) -> str | None:
        """The default version of a model; None if there is no such model."""
        return self._defaults.get(name)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Every (name, version), by name, then in the order they were added."""
        for name in sorted(self._models):
            for version in self._models[name]:
                yield name, version
