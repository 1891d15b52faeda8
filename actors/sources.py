"""What RegisterModel's `url` means: nothing, a place in the model store, or a URL whose file comes there first.

`open` shows on the board how far it is; its caller says afterwards what became of it: `keep` or `give_back`.
What must not live here: how files are fetched (fetching.py), what they hold (model_folder.py), gRPC.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from actorserve.actors import model_store, urls
from actorserve.actors.fetching import Fetching
from actorserve.actors.messages import ModelSpec
from actorserve.actors.model_store import Folder
from actorserve.actors.progress import Board, Phase, UnderWay
from actorserve.actors.unpacking import Unpacking


class Sources:
    """See the module's docstring. `store`: the model store; `folder`: the model_dir of a model without a url."""

    def __init__(self, store: Path, folder: Path, fetching: Fetching, unpacking: Unpacking) -> None:
        self.board = Board()
        self._store = store
        self._folder = folder
        self._fetching = fetching
        self._unpacking = unpacking

    async def open(self, url: str, progress: UnderWay) -> Folder:
        """The source, fetched and unpacked where it has to be. Cancelled or failed, nothing is left of it."""
        if not url:
            return Folder(self._folder, "", {})
        if not urls.is_url(url):
            return await model_store.open_source(model_store.locate(self._store, url), self._unpacking)
        path = await self._fetching.fetch(url, progress)
        progress.phase = Phase.UNPACKING
        try:
            return await model_store.open_source(path, self._unpacking)
        except BaseException:
            await self._fetching.discard(url)
            raise

    async def give_back(self, url: str, folder: Path, used: Collection[str] = ()) -> None:
        """Nobody needs what `open` gave any more. `used`: urls of other models, whose files stay. Shielded."""
        await self._fetching.discard(url, used)
        await self._unpacking.release(folder)

    def keep(self, spec: ModelSpec) -> None:
        """A registration is durable."""
        self._fetching.keep(spec.url)

    async def reopen(self, spec: ModelSpec) -> Folder:
        """The source of a registered model, after a restart: from the store, never fetched again. ActorserveError."""
        name = urls.file_name(spec.url) if urls.is_url(spec.url) else spec.url
        return await model_store.open_source(model_store.locate(self._store, name), self._unpacking)

    async def tidy(self, live: Collection[str], dropped: Collection[str]) -> None:
        """At a start: remove what an ended server left. `live`, `dropped`: urls of models that are, or are no more."""
        self._fetching.sweep(live)
        for url in dropped:
            await self._fetching.discard(url, live)
