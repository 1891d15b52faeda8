"""Fetching into the store, from servers on loopback: what comes, what is refused, and that nothing is left."""

import errno
import os
import resource
import ssl
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
import trustme
from web import Names, answer, redirect, web

from actorserve.actors import fetching
from actorserve.actors.fetching import Fetching, Limits
from actorserve.actors.progress import Phase, UnderWay
from actorserve.actors.urls import AllowList
from actorserve.errors import DownloadFailed, LoadFailed, ModelFileExists, UrlNotAllowed

BODY = os.urandom(3_000_000)


@pytest.fixture
def store(tmp_path):
    return tmp_path / "store"


def fetcher(store, *patterns, **limits):
    """A Fetching with these patterns and limits."""
    return Fetching(store, AllowList(patterns), Limits(**limits))


def left(store):
    """Everything in the store."""
    return sorted(os.listdir(store)) if store.exists() else []


async def fetch(fetching, url):
    return await fetching.fetch(url, UnderWay("m", url))


@contextmanager
def refused(store, error, text):
    """The block raises this, and the store is as empty as before."""
    with pytest.raises(error, match=text):
        yield
    assert left(store) == []


# --- what comes -----------------------------------------------------------------------------------------


async def test_a_file_comes(store):
    """The octets are the server's; the request asks for this very target, for no encoding, with nothing of a
    credential; the part's name is gone once the file is kept; and progress has counted.
    """
    async with web() as site:
        site.pages["/deep/m.mar?sig=a%20b&x=/y"] = answer(BODY)
        url = site.url("/deep/m.mar?sig=a%20b&x=/y")
        one, progress = fetcher(store, site.pattern()), UnderWay("m", url)
        path = await one.fetch(url, progress)
        assert (path, path.read_bytes() == BODY) == (store / "m.mar", True)
        assert (progress.phase, progress.done, progress.total) == (Phase.DOWNLOADING, len(BODY), len(BODY))
        head = site.requests[0].lower()
        assert f"host: 127.0.0.1:{site.port}\r\n" in head
        assert "accept-encoding: identity\r\n" in head
        assert not any(word in head for word in ("cookie", "authorization", "proxy"))
        one.keep(url)
        assert left(store) == ["m.mar"]
        assert oct(path.stat().st_mode & 0o777) == "0o644"


async def test_the_environment_is_not_asked(store, monkeypatch, tmp_path):
    """Neither a proxy nor a netrc of the environment has any effect."""
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9/")
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login u password p\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    async with web() as site:
        site.pages["/m.mar"] = answer(b"x")
        one = fetcher(store, site.pattern())
        await fetch(one, site.url("/m.mar"))
        assert "authorization" not in site.requests[0].lower()
        one.close()


async def test_a_body_of_unknown_length(store):
    """Chunks without a length, and a body that ends with its connection, are taken as they come."""
    async with web() as site:
        site.pages["/a.mar"] = answer(
            b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", content_length=None, transfer_encoding="chunked"
        )
        site.pages["/b.mar"] = answer(b"until the end", content_length=None)
        one = fetcher(store, site.pattern())
        assert (await fetch(one, site.url("/a.mar"))).read_bytes() == b"abcde"
        assert (await fetch(one, site.url("/b.mar"))).read_bytes() == b"until the end"
        one.close()


async def test_nothing_is_inflated(store):
    """A gzipped tar that the server calls gzipped comes as it is."""
    async with web() as site:
        site.pages["/m.tar.gz"] = answer(b"\x1f\x8b...", content_encoding="x-gzip")
        one = fetcher(store, site.pattern())
        assert (await fetch(one, site.url("/m.tar.gz"))).read_bytes() == b"\x1f\x8b..."
        one.close()


async def test_redirects(store):
    """Five redirects are followed, each a request without the cookies of the last; the name is the first's."""
    async with web() as site:
        for step in range(5):
            site.pages["/m.mar" if not step else f"/{step}"] = redirect(f"/{step + 1}", set_cookie=f"a={step}")
        site.pages["/5"] = answer(b"here")
        one = fetcher(store, site.pattern())
        path = await fetch(one, site.url("/m.mar"))
        assert (path.name, path.read_bytes()) == ("m.mar", b"here")
        assert site.targets == ["/m.mar", "/1", "/2", "/3", "/4", "/5"]
        assert not any("cookie" in request.lower() for request in site.requests)
        one.close()


# --- what does not ----------------------------------------------------------------------------------------

BROKEN = {
    "missing": (answer(status="404 Not Found"), "the answer was 404"),
    "part of it": (answer(b"x", status="206 Partial Content"), "the answer was 206"),
    "error": (answer(b"x", status="500 No"), "the answer was 500"),
    "short": (answer(b"abc", content_length=10), "the connection broke"),
    "garbage": (b"SSH-2.0-OpenSSH\r\n\r\n", "the connection broke"),
    "nothing": (b"", "the connection broke"),
    "declared": (answer(content_length=5001), "5001 bytes is more than 5000 bytes"),
    "negative": (answer(content_length=-1), "the connection broke"),
    "undeclared": (answer(b"x" * 5001, content_length=None), "its content is more than 5000 bytes"),
    "encoded": (answer(b"x", content_encoding="gzip"), "the encoding 'gzip'"),
    "bomb": (answer(b"x", content_encoding="br"), "the encoding 'br'"),
    "loop": (redirect("/m.mar"), "more than 5 redirects"),
    "file": (redirect("file:///etc/hostname"), "redirected to a file"),
    "credentials": (redirect("http://u:p@127.0.0.1/"), "redirected to what is no proper URL"),
    "no location": (answer(status="302 Found"), "the answer was 302"),
}


@pytest.mark.parametrize("case", BROKEN)
async def test_broken(store, case):
    """What a server does wrong is DownloadFailed with its reason, begins with TorchServe's text, and leaves nothing."""
    page, text = BROKEN[case]
    async with web() as site:
        site.pages["/m.mar"] = page
        with refused(store, DownloadFailed, f"Failed to download archive from: {site.url('/m.mar')}: .*{text}"):
            await fetch(fetcher(store, site.pattern(), bytes_=5000), site.url("/m.mar?sig=secret"))


async def test_the_largest(store):
    """A file of exactly the limit comes."""
    async with web() as site:
        site.pages["/m.mar"] = answer(b"x" * 5000)
        one = fetcher(store, site.pattern(), bytes_=5000)
        assert (await fetch(one, site.url("/m.mar"))).stat().st_size == 5000
        one.close()


async def test_nobody_listens(store):
    """A host that cannot be connected to, and one that has no address, are told so."""
    trio.socket.set_custom_hostname_resolver(Names())
    async with web() as site:
        gone = site.url("/m.mar")
        pattern = site.pattern()
    with refused(store, DownloadFailed, "cannot be connected to"):
        await fetch(fetcher(store, pattern), gone)
    with refused(store, DownloadFailed, "name cannot be resolved"):
        await fetch(fetcher(store, ".*"), "http://nowhere.example/m.mar")


class Silent(Names):
    """A name service that never answers."""

    async def getaddrinfo(self, host, port, *_):
        await trio.sleep_forever()


async def test_a_silent_name_service(store, autojump_clock):
    """A name that is not answered for is given up after `download_stall_timeout_s`."""
    trio.socket.set_custom_hostname_resolver(Silent())
    with refused(store, DownloadFailed, "name cannot be resolved"):
        await fetch(fetcher(store, "https://a.example/.*", stall_s=30), "https://a.example/m.mar")


async def never(stream):
    """A page that never comes."""
    await trio.sleep_forever()


async def endless(stream):
    """A page that always goes on."""
    await stream.send_all(answer(content_length=None))
    while True:
        await stream.send_all(b"x")
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize(
    ("page", "limits", "text"),
    [
        (never, {"stall_s": 0.05}, "nothing came for 0.05 s .download_stall_timeout_s"),
        (endless, {"timeout_s": 0.2}, "was not there after 0.2 s .download_timeout_s"),
    ],
)
async def test_too_slow(store, page, limits, text):
    """A server that is silent, or never ends, is given up by the one limit or the other."""
    async with web() as site:
        site.pages["/m.mar"] = page
        with refused(store, DownloadFailed, text):
            await fetch(fetcher(store, site.pattern(), **limits), site.url("/m.mar"))


async def test_cancelled(store):
    """A cancel ends a download that is under way, closes its connection, and leaves nothing."""
    closed, begun = trio.Event(), trio.Event()

    async def half(stream):
        await stream.send_all(answer(BODY[:2_000_000], content_length=len(BODY)))
        begun.set()
        try:
            assert not await stream.receive_some()
        finally:
            closed.set()

    async with web() as site:
        site.pages["/m.mar"] = half
        one = fetcher(store, site.pattern())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fetch, one, site.url("/m.mar"))
            await begun.wait()
            while not any(path.stat().st_size for path in store.iterdir()):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        assert left(store) == []
        await closed.wait()
        site.pages["/m.mar"] = answer(b"x")
        await fetch(one, site.url("/m.mar"))  # its name is free
        one.close()


async def test_a_full_disk(store):
    """What the system will not write is LoadFailed that names the store, and leaves nothing."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with web() as site:
        site.pages["/m.mar"] = answer(BODY)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
        try:
            with refused(store, LoadFailed, f"the model store {store} cannot be written to: File too large"):
                await fetch(fetcher(store, site.pattern()), site.url("/m.mar"))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_called_full(store):
    """No space, or a quota that is used up, is told as a store that is full."""
    for number in (errno.ENOSPC, errno.EDQUOT):
        with pytest.raises(LoadFailed, match=f"^the model store {store} is full$"), fetching._told(store):
            raise OSError(number, "x")


async def test_a_store_that_is_a_file(tmp_path):
    """A store that cannot be a folder is LoadFailed."""
    (tmp_path / "store").write_text("")
    async with web() as site:
        site.pages["/m.mar"] = answer(b"x")
        with pytest.raises(LoadFailed, match="cannot be written to"):
            await fetch(fetcher(tmp_path / "store", site.pattern()), site.url("/m.mar"))


# --- whom it asks -------------------------------------------------------------------------------------------


async def test_a_redirect_is_checked(store):
    """A redirect to a URL that no pattern matches is not followed: it is never asked."""
    async with web() as site, web() as inner:
        site.pages["/m.mar"] = redirect(inner.url("/secret?token=1"))
        text = f"Given URL {inner.url('/secret')} does not match any .*: {site.url('/m.mar')} leads there$"
        with refused(store, UrlNotAllowed, text):
            await fetch(fetcher(store, site.pattern()), site.url("/m.mar"))
        assert inner.requests == []


async def test_a_redirect_to_a_private_address(store):
    """A pattern that would match anything does not name a host: a redirect to loopback is not followed."""
    async with web() as site, web() as inner:
        site.pages["/m.mar"] = redirect(inner.url("/m.mar"))
        with refused(store, UrlNotAllowed, "is not public"):
            await fetch(fetcher(store, site.pattern(), "http://.*"), site.url("/m.mar"))
        assert inner.requests == []


@pytest.mark.parametrize("host", ["127.0.0.1", "inner.example", "localhost", "2130706433", "0x7f.1", "[::1]", "0"])
async def test_loopback_is_not_asked(store, host):
    """Whatever its name or spelling, loopback is asked by no pattern that leaves the host open."""
    trio.socket.set_custom_hostname_resolver(
        Names(**{name: [["127.0.0.1"]] for name in ("inner_example", "localhost", "2130706433", "0x7f_1")})
    )  # fmt: skip
    async with web() as site:
        with refused(store, UrlNotAllowed, "is not public, and no pattern says"):
            await fetch(fetcher(store, "http://.*"), site.url("/m.mar", host))
        assert site.requests == []


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["93.184.216.34", "127.0.0.1"], ["::ffff:127.0.0.1"]])
async def test_a_named_host_does_not_choose_loopback(store, addresses):
    """A host that a pattern names may be on a private network; that its name says loopback does not open it, and one
    bad address among good ones is enough.
    """
    trio.socket.set_custom_hostname_resolver(Names(models_example=[addresses]))
    async with web() as site:
        with refused(store, UrlNotAllowed, "models.example is not public"):
            await fetch(fetcher(store, site.pattern(r"models\.example")), site.url("/m.mar", "models.example"))
        assert site.requests == []


async def test_a_name_that_changes(store):
    """A host is resolved once a hop: an answer that changes after the check is never seen (DNS rebinding)."""
    names = Names(localhost=[["127.0.0.1"], ["93.184.216.34"]])
    trio.socket.set_custom_hostname_resolver(names)
    async with web() as site:
        site.pages["/m.mar"] = answer(b"x")
        one = fetcher(store, site.pattern("localhost"))
        await fetch(one, site.url("/m.mar", "localhost"))
        assert names.asked == ["localhost"]
        assert f"host: localhost:{site.port}" in site.requests[0].lower()
        one.close()


async def test_the_next_address(store):
    """Where a host has several addresses, one that cannot be connected to is passed over."""
    trio.socket.set_custom_hostname_resolver(Names(localhost=[["::1", "127.0.0.1"]]))
    async with web() as site:
        site.pages["/m.mar"] = answer(b"x")
        one = fetcher(store, site.pattern("localhost"))
        await fetch(one, site.url("/m.mar", "localhost"))
        one.close()


@pytest.mark.parametrize(
    ("issued", "trusted", "text"),
    [
        ("localhost", True, ""),
        ("other.example", True, "not valid for"),
        ("localhost", False, "unable to get local issuer"),
    ],
)
async def test_certificates(store, tmp_path, monkeypatch, issued, trusted, text):  # noqa: PLR0917  # fixtures
    """The certificate must be by a known authority and for the host's name, though an address is connected to."""
    ours, theirs = trustme.CA(), trustme.CA()
    (ours if trusted else theirs).cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    trio.socket.set_custom_hostname_resolver(Names(localhost=[["127.0.0.1"]]))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ours.issue_cert(issued).configure_cert(context)
    async with web(context) as site:
        site.pages["/m.mar"] = answer(b"x")
        one = fetcher(store, site.pattern("localhost"))
        if not text:
            assert (await fetch(one, site.url("/m.mar", "localhost"))).read_bytes() == b"x"
            one.close()
            return
        with refused(store, DownloadFailed, f"cannot be connected to: .*{text}"):
            await fetch(one, site.url("/m.mar", "localhost"))
        assert site.requests == []


# --- files of the store ---------------------------------------------------------------------------------------


async def test_the_name_is_taken(store):
    """A file, or a link to nowhere, of the same name in the store is an error, before anything is asked."""
    store.mkdir()
    (store / "m.mar").write_bytes(b"old")
    (store / "n.mar").symlink_to("nowhere")
    async with web() as site:
        one = fetcher(store, site.pattern())
        for name in ("m.mar", "n.mar"):
            with pytest.raises(ModelFileExists, match=f"^Model file already exists {name}$"):
                await fetch(one, site.url(f"/deep/{name}"))
        assert site.requests == []
    assert (store / "m.mar").read_bytes() == b"old"


async def test_the_name_is_taken_meanwhile(store):
    """What appears in the store while a file comes is not overwritten."""

    async def slow(stream):
        (store / "m.mar").write_bytes(b"theirs")
        await stream.send_all(answer(b"ours"))

    async with web() as site:
        site.pages["/m.mar"] = slow
        with pytest.raises(ModelFileExists):
            await fetch(fetcher(store, site.pattern()), site.url("/m.mar"))
    assert left(store) == ["m.mar"]
    assert (store / "m.mar").read_bytes() == b"theirs"


async def test_two_at_once(store):
    """Of two that fetch the same file at once the second is refused, and the first gets it whole."""
    second = trio.Event()

    async def slow(stream):
        await second.wait()
        await stream.send_all(answer(BODY))

    async with web() as site:
        site.pages["/m.mar"] = slow
        one = fetcher(store, site.pattern())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fetch, one, site.url("/m.mar"))
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(ModelFileExists):
                await fetch(one, site.url("/m.mar"))
            second.set()
        one.keep(site.url("/m.mar"))
    assert left(store) == ["m.mar"]
    assert (store / "m.mar").read_bytes() == BODY


async def test_so_many_at_once(store):
    """No more downloads run at once than the limit says; the others wait for their turn."""

    async def page(stream):
        await trio.testing.wait_all_tasks_blocked()
        await stream.send_all(answer(b"x"))

    async with web() as site:
        one = fetcher(store, site.pattern(), at_once=2)
        async with trio.open_nursery() as nursery:
            for number in range(6):
                site.pages[f"/{number}.mar"] = page
                nursery.start_soon(fetch, one, site.url(f"/{number}.mar"))
        assert (site.most, len(site.requests)) == (2, 6)
        one.close()


async def test_discarded(store):
    """A file that came from a URL is removed with its part; one that another model uses stays, and so does any that
    did not come from a URL.
    """
    async with web() as site:
        for name in ("a", "b"):
            site.pages[f"/{name}.mar"] = answer(b"x")
        one = fetcher(store, site.pattern())
        for name in ("a", "b"):
            await fetch(one, site.url(f"/{name}.mar"))
        (store / "c.mar").write_bytes(b"own")
        await one.discard(site.url("/a.mar"), ["b.mar"])
        await one.discard(site.url("/b.mar"), ["b.mar"])
        await one.discard("c.mar")
        await one.discard("")
        assert left(store) == ["b.mar", "c.mar"]


async def test_no_hard_links(store, monkeypatch):
    """On a file system without hard links a file comes all the same, and never over another."""

    def none(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", none)
    async with web() as site:
        site.pages["/m.mar"] = answer(b"x")
        one = fetcher(store, site.pattern())
        await fetch(one, site.url("/m.mar"))
        one.keep(site.url("/m.mar"))
        assert left(store) == ["m.mar"]


async def test_what_a_killed_server_left(store):
    """A start removes parts that nobody locks, with files that no model of the registry has; it leaves a living
    server's, and everything that has no second name.
    """
    async with web() as site:
        for name in ("lost", "known", "by_name", "living"):
            site.pages[f"/{name}.mar"] = answer(b"x")
        killed, living = fetcher(store, site.pattern()), fetcher(store, site.pattern())
        for name in ("lost", "known", "by_name"):
            await fetch(killed, site.url(f"/{name}.mar"))
        await fetch(living, site.url("/living.mar"))
        (store / "own.mar").write_bytes(b"x")
        (store / ".part-half").write_bytes(b"half")
        killed.close()  # as its end gives the locks back
        fetcher(store).sweep([site.url("/known.mar"), "by_name.mar"])
        assert [name for name in left(store) if not name.startswith(".part-")] == [
            *("by_name.mar", "known.mar", "living.mar", "own.mar"),
        ]
        assert len(left(store)) == 5  # the living one's part
        living.keep(site.url("/living.mar"))
    assert left(store) == ["by_name.mar", "known.mar", "living.mar", "own.mar"]
    fetcher(store / "missing").sweep([])


# --- file:// ----------------------------------------------------------------------------------------------------


@pytest.fixture
def elsewhere(tmp_path):
    """A folder with a file, links, a pipe and a folder."""
    folder = tmp_path / "else where"
    (folder / "sub.mar").mkdir(parents=True)
    (folder / "m.mar").write_bytes(BODY)
    (tmp_path / "secret.mar").write_bytes(b"secret")
    (folder / "inside.mar").symlink_to("m.mar")
    (folder / "outside.mar").symlink_to("../secret.mar")
    os.mkfifo(folder / "pipe.mar")
    return folder


@pytest.mark.parametrize("name", ["m.mar", "inside.mar"])
async def test_files(store, elsewhere, name):
    """A file:// URL that is allowed is copied into the store under its base name."""
    one = fetcher(store, f"{elsewhere.as_uri()}/.*")
    path = await fetch(one, f"{elsewhere.as_uri()}/{name}")
    assert (path, path.read_bytes() == BODY, path.is_symlink()) == (store / name, True, False)
    one.close()


@pytest.mark.parametrize(
    ("name", "error", "text"),
    [
        ("none.mar", DownloadFailed, "cannot be read: No such file"),
        ("sub.mar", DownloadFailed, "no plain file"),
        ("pipe.mar", DownloadFailed, "no plain file"),
        ("outside.mar", UrlNotAllowed, "a link that leads elsewhere"),
        ("m.mar", DownloadFailed, "max_archive_bytes"),
    ],
)
async def test_files_that_are_none(store, elsewhere, name, error, text):
    """What is no plain file, is too large, or leads out of what is allowed by a link, is refused and leaves nothing."""
    with refused(store, error, text):
        await fetch(fetcher(store, f"{elsewhere.as_uri()}/.*", bytes_=5000), f"{elsewhere.as_uri()}/{name}")


async def test_files_must_be_allowed(store, elsewhere):
    """A file:// URL needs a pattern like any other; one inside the store is there already."""
    with refused(store, UrlNotAllowed, "does not match any allowed"):
        await fetch(fetcher(store, "http://.*"), f"{elsewhere.as_uri()}/m.mar")
    store.mkdir()
    (store / "m.mar").write_bytes(b"x")
    with pytest.raises(ModelFileExists):
        await fetch(fetcher(store, "file://.*"), Path(store / "m.mar").as_uri())
