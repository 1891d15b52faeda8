"""A new configuration for a server that runs: all of it is checked, then what is different is taken up.

    checked: models' folders, archives and devices, files of tokens   wrong: one error, and nothing has changed
    taken up: models, by the registry's rules; servicers; applications; listeners' limits, tokens, from now on
    named: what needs a restart, a line for each key

What must not live here: reading the file (console.py), what is different (reloading.py), how a model changes
(actors/applying.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import structlog
import trio

from actorserve import config
from actorserve.actors import registry_jobs as jobs
from actorserve.actors.applying import Applying
from actorserve.actors.messages import ModelSpec
from actorserve.actors.registry import Registry
from actorserve.actors.registry_rules import Entry, Row
from actorserve.actors.reload_rules import Apply, Step
from actorserve.actors.unpacking import Unpacking
from actorserve.config_listener import Listener
from actorserve.config_types import is_packed
from actorserve.errors import ActorserveError, ConfigError
from actorserve.file_apps import FileApps
from actorserve.file_servicers import FileServicers
from actorserve.reloading import (
    LIMITS,
    application_changes,
    as_it_runs,
    model_changes,
    needs_restart,
    servicer_changes,
    takes_up,
    text_of,
)
from actorserve.servicer_specs import expected
from actorserve.services.access import Access, Finds
from actorserve.services.health import HealthBoard
from actorserve.services.transport.server import GrpcServer

log = structlog.get_logger("actorserve.reload")
MakeSpec = Callable[[str, config.Config], ModelSpec]
ReadTokens = Callable[[Listener], Finds]


def say_left_out(error: ConfigError) -> None:
    """Tell of a model that nobody has named, and that is broken."""
    log.warning("model left out", key=error.key, why=error.text)


class Reloader:
    """See the module's docstring. `settings`: what runs; `entries`: what was applied last, by their keys."""

    def __init__(
        self,
        settings: config.Config,
        entries: Mapping[str, Entry],
        *,
        make_spec: MakeSpec,
        read_tokens: ReadTokens,
        registry: Registry,
        applying: Applying,
        unpacking: Unpacking,
        servers: Mapping[str, GrpcServer],
        health: HealthBoard,
        servicers: FileServicers,
        applications: FileApps,
    ) -> None:
        """`make_spec(entry, settings)` gives what an entry comes to, or ConfigError; it may block.

        `read_tokens` gives the tokens of a listener's file, or ConfigError.
        """
        self.settings = settings
        self._entries = dict(entries)
        self._make_spec = make_spec
        self._read_tokens = read_tokens
        self._registry = registry
        self._applying = applying
        self._unpacking = unpacking
        self._servers = servers
        self._health = health
        self._servicers = servicers
        self._applications = applications
        self._turn = trio.Lock()

    async def reload(self, new: config.Config) -> None:
        """Take up what is different. Returns when every model has changed, or could not; further reloads go beside.

        ConfigError, StateFailed: nothing was changed.
        """
        wrong: ActorserveError | None = None
        async with trio.open_nursery() as nursery:
            try:
                async with self._turn:
                    running = [one.label for one in self.settings.servicers]
                    for step in await self._take_up(new):
                        begun = trio.Event()
                        nursery.start_soon(self._applying.carry_out, step, begun)
                        await begun.wait()
                    self._applications.want(self.settings.applications)
                    known = trio.Event()
                    nursery.start_soon(self._servicers.apply, running, self.settings.servicers, known)
                    nursery.start_soon(self._apply_applications, known)
            except ActorserveError as error:  # raised below, as it was: in no group of the nursery
                wrong = error
        if wrong is not None:
            raise wrong

    async def _apply_applications(self, known: trio.Event) -> None:
        await known.wait()  # so that new ones begin with what they answer
        await self._applications.apply()

    async def _take_up(self, new: config.Config) -> list[Step]:
        """Check everything, then take up all but the steps of models, which it gives."""
        rows = await self._registry.run(jobs.rows_of)
        made: list[ModelSpec] = []
        try:
            entries = await self._entries_of(new, rows, made)
            new = new.of_models(entries)
            tokens = self._tokens(new)
            found = await self._applying.plan(entries)
        except BaseException:
            await self._release(made)
            raise
        used = {step.entry.spec.model_dir for step in found if isinstance(step, Apply)}
        await self._release(spec for spec in made if spec.model_dir not in used)
        self._say(new, found)
        self._take_up_listeners(new, tokens)
        models = (entry.spec.key for entry in entries.values() if entry.spec.workers_begun)
        self._health.reconfigure([*models, *expected(new.servicers)])
        taken_up = {key: getattr(new, key) for key in ("models", "model_defaults", "servicers", "applications")}
        self.settings = self.settings.model_copy(update=taken_up)
        self._entries = entries
        return found

    # --- checking -------------------------------------------------------------------------------

    async def _entries_of(self, new: config.Config, rows: list[Row], made: list[ModelSpec]) -> dict[str, Entry]:
        """Every entry with its spec; those that are as they were applied last are not looked at again. Without those
        that are optional and wrong.
        """
        entries: dict[str, Entry] = {}
        for name, model in new.models.items():
            known = self._entries.get(name)
            try:
                if known is None or not _stands(known, name, new, rows):
                    made.append(await self._spec(name, new))
                    known = Entry(made[-1], text_of(new, name, made[-1].version))
                found = {entry: (one.spec.name, one.spec.version) for entry, one in entries.items()}
                config.check_distinct(found | {name: (known.spec.name, known.spec.version)})
            except ConfigError as error:
                if name not in new.optional:
                    raise
                say_left_out(error)
            else:
                entries[name] = replace(known, is_default=model.default)
        return entries

    async def _spec(self, name: str, new: config.Config) -> ModelSpec:
        source = new.models[name].source
        if source is None or not is_packed(source.name):
            return self._make_spec(name, new)
        return await self._unpacking.in_thread(lambda _check: self._make_spec(name, new))

    def _tokens(self, new: config.Config) -> dict[str, Finds]:
        """The tokens of every listener that has some and keeps them; ConfigError."""
        found = {}
        for name, listener in new.listeners.items():
            running = self.settings.listeners.get(name)
            if listener.tokens_file is not None and running is not None and running.tokens_file is not None:
                try:
                    found[name] = self._read_tokens(as_it_runs(running, listener))
                except ConfigError as error:
                    raise ConfigError(f"listeners.{name}.{error.key}", error.text) from None
        return found

    async def _release(self, specs: Iterable[ModelSpec]) -> None:
        for spec in specs:
            await self._unpacking.release(spec.model_dir)

    # --- taking up --------------------------------------------------------------------------------

    def _say(self, new: config.Config, found: list[Step]) -> None:
        for key in needs_restart(self.settings, new):
            log.warning("configuration needs a restart", key=key)
        changes = (model_changes, servicer_changes, application_changes)
        for key, keys in (one for find in changes for one in find(self.settings, new)):
            log.info("configuration changed", key=key, changed=keys)
        log.info("configuration reloaded", steps=len(found))

    def _take_up_listeners(self, new: config.Config, tokens: Mapping[str, Finds]) -> None:
        listeners = dict(self.settings.listeners)
        for name in listeners.keys() & new.listeners.keys():
            if keys := takes_up(listeners[name], new.listeners[name]):
                log.info("configuration changed", key=f"listeners.{name}", changed=", ".join(keys))
            listeners[name] = running = as_it_runs(listeners[name], new.listeners[name])
            server = self._servers[name]
            server.limits = replace(server.limits, **{key: getattr(running, key) for key in LIMITS})
            for one in server.interceptors:
                if isinstance(one, Access) and name in tokens:
                    one.renew(tokens[name], running.auth_exempt)
        self.settings = self.settings.model_copy(update={"listeners": listeners})


def _stands(known: Entry, name: str, new: config.Config, rows: Iterable[Row]) -> bool:
    """Whether an entry is as it was applied last, and that was not taken back since."""
    spec = known.spec
    text = text_of(new, name, spec.version)
    applied = any((row.name, row.version, row.text) == (spec.name, spec.version, text) for row in rows)
    return applied and known.text == text and new.name_of(name) == spec.name
