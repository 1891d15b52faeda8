"""Which models there are: by name and version, those that leave, and which version is a name's default.

What must not live here: their workers (staffing.py), what is asked of them (supervisor.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from actorserve.actors.device import Ledger
from actorserve.actors.directory import Directory
from actorserve.actors.messages import ModelSpec, Stop, Tree
from actorserve.actors.model import Model
from actorserve.errors import AlreadyRegistered, ConfigError, LoadFailed, NoSuchModel, WrongState


class Roster:
    """See the module's docstring. `on_change` is called when a model's name is taken away."""

    def __init__(self, directory: Directory, ledger: Ledger, on_change: Callable[[], None]) -> None:
        self.models: dict[tuple[str, str], Model] = {}
        self.leaving: list[Model] = []
        self._directory = directory
        self._ledger = ledger
        self._on_change = on_change

    def has(self, name: str, version: str) -> bool:
        """Whether a version is registered, and does not leave."""
        return (name, version) in self.models

    def everyone(self) -> Iterator[Model]:
        """Every model, those that leave included."""
        yield from self.models.values()
        yield from self.leaving

    def find(self, name: str, version: str) -> Model:
        """A version, or the default version; NoSuchModel."""
        wanted = version or self._directory.default(name) or ""
        model = self.models.get((name, wanted))
        if model is None:
            raise NoSuchModel(name, version if self._directory.default(name) else "")
        return model

    def stoppable(self, message: Stop) -> Model:
        """The version that is to go; NoSuchModel, or WrongState where calls that name none mean it."""
        model = self.find(message.name, message.version)
        spec = model.spec
        others = any(name == spec.name and version != spec.version for name, version in self.models)
        if others and not message.forced and self._directory.default(spec.name) == spec.version:
            raise WrongState(f"version {spec.version} is the default of model {spec.name}; other versions exist")
        return model

    def check_free(self, spec: ModelSpec) -> None:
        """AlreadyRegistered where there is such a version."""
        if self.has(spec.name, spec.version):
            raise AlreadyRegistered(f"model {spec.name} version {spec.version} is registered already")

    def settled(self, spec: ModelSpec) -> ModelSpec:
        """The spec with its number of threads; LoadFailed where it names a device that does not exist."""
        try:
            others = (model.spec for key, model in self.models.items() if key != (spec.name, spec.version))
            return self._ledger.settle_threads(spec, others)
        except ConfigError as error:
            raise LoadFailed(str(error)) from None

    def enter(self, model: Model) -> None:
        """Have a version that there is not yet; the first of a name is its default."""
        spec = model.spec
        self.models[spec.name, spec.version] = model
        self._directory.add(spec.name, spec.version, model.mailbox)

    def forget(self, model: Model) -> None:
        """Take a model's name away and shut its door: this begins its drain."""
        spec = model.spec
        model.mailbox.close(lambda: NoSuchModel(spec.name, spec.version))
        if self.models.get((spec.name, spec.version)) is model:
            del self.models[spec.name, spec.version]
            self._directory.remove(spec.name, spec.version)
            self.leaving.append(model)
            self._on_change()

    def gone(self, model: Model) -> None:
        """It has left."""
        self.leaving = [other for other in self.leaving if other is not model]

    def observe(self) -> Tree:
        """The tree now."""
        default = self._directory.default
        return Tree(
            tuple(
                model.view(is_default=default(name) == version)
                for (name, version), model in sorted(self.models.items())
            ),
            tuple(model.view(is_default=False) for model in self.leaving),
        )
