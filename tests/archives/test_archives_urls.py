"""URLs as texts: one reading of each, the allow-list, the addresses that may be asked, where redirects may lead."""

import ipaddress
import re
from urllib.parse import urlsplit

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from actorserve import config
from actorserve.actors import urls
from actorserve.actors.urls import AllowList, Reach, may_ask, parse, reach
from actorserve.config_types import PACKED
from actorserve.errors import BadInput, ConfigError, DownloadFailed, Unsupported, UrlNotAllowed

V4 = st.integers(0, 2**32 - 1).map(ipaddress.IPv4Address)
V6 = st.integers(0, 2**128 - 1).map(ipaddress.IPv6Address)
GLOBAL_V6 = st.integers(0x2 << 124, (0x4 << 124) - 1).map(ipaddress.IPv6Address)
NEAR = st.sampled_from(
    ["10.0.0.0", "100.64.0.0", "127.0.0.0", "169.254.0.0", "172.16.0.0", "192.168.0.0", "198.18.0.0", "224.0.0.0"]
).flatmap(lambda base: st.integers(-(2**22), 2**22).map(lambda step: ipaddress.IPv4Address(base) + step))
ODD = st.text(alphabet="htpsfile:/\\@#?.[]%0123456789abAZ \n\t_-;&=é\0", max_size=40)


# --- one reading ------------------------------------------------------------------------------------


@given(st.one_of(ODD, ODD.map(lambda tail: f"http://{tail}"), ODD.map(lambda tail: f"https://a.example{tail}")))
@example("http://a.example\\@b.example/m.mar")
@example("http://a.example#@b.example/")
@example("http://[::1]/m.mar")
@example("http://[::1%25eth0]/m.mar")
@example("HTTP://A.EXAMPLE:08080?q=/x")
def test_every_reader_reads_the_same(text):
    """What is taken for a URL has the host, the port and the target that the standard library's reader and httpx find
    in it; everything else is refused as BadInput or Unsupported, and nothing else.
    """
    try:
        url = parse(text)
    except (BadInput, Unsupported):
        return
    other = urlsplit(text)
    assert (url.scheme, url.host) == (other.scheme, other.hostname or "")
    assert url.port == (other.port or urls.FETCHED[url.scheme])
    assert url.target == (other.path or "/") + text[len(text) - len(url.target) :].partition("?")[1] + other.query
    assert other.username is other.password is None
    if url.scheme != "file":
        theirs = httpx.URL(text)
        assert (theirs.host, theirs.port or urls.FETCHED[url.scheme]) == (url.host, url.port)


REFUSED = {
    "https://a.example/../m.mar": "Relative path is not allowed in url: https://a.example/../m.mar",
    "https://a.example/%2e%2e/m.mar": "Relative path is not allowed in url",
    "https://a.example/%2E./m.mar": "Relative path is not allowed in url",
    "http://user:secret@a.example/m.mar": "credentials",
    "http://user@a.example/m.mar": "credentials",
    "http://a.example\\@b.example/m.mar": "does not belong into a URL",
    "http://a.example\\.b.example/m.mar": "does not belong into a URL",
    "http://a.example/m.mar#x": "does not belong into a URL",
    "http://a.example/m .mar": "does not belong into a URL",
    "http://a.example/%0d%0ax.mar": "does not belong into a URL",
    "http://a.example/%00.mar": "does not belong into a URL",
    "http://a.example/%zz.mar": "does not belong into a URL",
    "http://\uff41.example/m.mar": "does not belong into a URL",
    "http://a.example:0/m.mar": "no host and port",
    "http://a.example:65536/m.mar": "no host and port",
    "http:///m.mar": "no host and port",
    "http://a.example:80:80/m.mar": "is not scheme://host:port/path",
    "file://elsewhere/m.mar": "names a host",
    "http://a.example/" + "a" * 2032: "has 2049 characters",
}


@pytest.mark.parametrize("text", REFUSED)
def test_refused_whatever_is_allowed(text):
    """What could be read in two ways is refused even where everything is allowed; secrets are not repeated."""
    with pytest.raises(BadInput, match=re.escape(REFUSED[text])) as caught:
        AllowList([".*"]).check(text)
    assert caught.value.field == "url"
    assert "secret" not in str(caught.value)


def test_a_url_of_the_greatest_length():
    """2048 characters are a URL."""
    text = "http://a.example/" + "a" * 2031
    assert parse(text).text == text


def test_shown_without_secrets():
    """Texts, logs and the registry have a URL without its query, and without credentials."""
    assert urls.shown("https://u:p@a.example/m.mar?sig=1#x") == "https://a.example/m.mar"


@given(st.text(alphabet="abc./%2f5ceE\\-_ é\0~", max_size=30), st.sampled_from(PACKED))
def test_the_file_has_a_plain_name(text, suffix):
    """A file's name in the store is one part, begins with no dot, holds nothing odd, and ends as archives do."""
    try:
        name = urls.file_name(f"https://a.example/{text}{suffix}")
    except BadInput:
        return
    assert re.fullmatch(r"[A-Za-z0-9_+][A-Za-z0-9_.+-]*", name)
    assert name.endswith(suffix)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("https://a.example/deep/m.mar?sig=/x.mar", "m.mar"),
        ("https://a.example/my%20model.tar.gz", "my_model.tar.gz"),
        ("https://a.example/x%2F.m.pt", "m.pt"),
        ("https://a.example/m.mar/", "m.mar"),
    ],
)
def test_file_names(text, name):
    """The base name, without the query; what is odd in it is replaced."""
    assert urls.file_name(text) == name


@pytest.mark.parametrize("text", ["https://a.example/m.exe", "https://a.example/", "https://a.example/.mar", "s://"])
def test_no_archive(text):
    """What does not end as archives and models' files do is not fetched."""
    with pytest.raises(BadInput, match="does not end in the name of an archive"):
        urls.file_name(text)


def test_a_name_that_is_too_long():
    """200 characters are a name, 201 are not."""
    assert len(urls.file_name(f"https://a.example/{'a' * 196}.mar")) == 200
    with pytest.raises(BadInput, match="201 characters"):
        urls.file_name(f"https://a.example/{'a' * 197}.mar")


# --- the allow-list ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "text", "allowed"),
    [
        (r"https://a\.example/.*", "https://a.example/m.mar", True),
        (r"https://a\.example/.*", "HTTPS://A.EXAMPLE/m.mar", True),
        (r"https://a\.example/.*", "http://a.example/m.mar", False),
        (r"https://a\.example/.*", "https://a.example.evil.example/m.mar", False),
        (r"https://a\.example/.*", "https://evil.example/?https://a.example/m.mar", False),
        (r"https://a\.example/", "https://a.example/m.mar", False),
        (r"file://.*|http(s)?://.*", "https://any.example/m.mar", True),
    ],
)
def test_patterns_match_the_whole(pattern, text, allowed):
    """A pattern matches a URL from its first character to its last, whatever the case; otherwise: TorchServe's text."""
    allow = AllowList([pattern])
    if allowed:
        assert allow.check(text).text == text
    else:
        with pytest.raises(UrlNotAllowed, match=r"Given URL .* does not match any allowed URL\(s\)$"):
            allow.check(text)


def test_other_schemes():
    """What is not fetched by any scheme of ours is told so only where a pattern allows it."""
    with pytest.raises(UrlNotAllowed, match=r"Given URL s3://b/m\.mar does not match any allowed URL\(s\)"):
        AllowList([]).check("s3://b/m.mar")
    with pytest.raises(Unsupported, match="not by s3"):
        AllowList([".*"]).check("s3://b/m.mar")


NAMED = {
    r"http://10\.0\.0\.1/.*": {"10.0.0.1"},
    r"http://10.0.0.1:8000/.*": {"10.0.0.1"},
    r"https?://models\.internal(:[0-9]+)?/.*": {"models.internal"},
    r"https?://models\.internal(?::[0-9]+)?/.*": {"models.internal"},
    r"http://a/.*|http://B\.example/.*": {"a", "b.example"},
    r"(http://a|http://b)/x": {"a", "b"},
    r"http:\/\/a\-b\/.*": set(),
    r"http://a\-b\/.*": {"a-b"},
    r"http://\[fd00::0:1\]:80/.*": {"fd00::1"},
    r"http://localhost": {"localhost"},
    r"http://.*/m.mar": set(),
    r"http://[^/]+/m.mar": set(),
    r"http://10\.0\.0\..*": set(),
    r"http://10\.0\.0\.[0-9]+/": set(),
    r"http://internal?/": set(),
    r"http://(a|b)/": set(),
    r"file://.*|http(s)?://.*": set(),
}


@pytest.mark.parametrize("pattern", NAMED)
def test_hosts_that_are_named(pattern):
    """A host is named by a pattern in which nothing of it is left open."""
    assert urls.hosts_named(pattern) == NAMED[pattern]


def test_who_names_must_match():
    """A pattern names a host for the URLs that it matches itself, and for no others."""
    allow = AllowList([r"http://10\.0\.0\.1/one/.*", r"http://.*/any/.*"])
    assert allow.names(parse("http://10.0.0.1/one/m.mar"))
    assert not allow.names(parse("http://10.0.0.1/any/m.mar"))


def test_patterns_are_checked_with_the_config(tmp_path):
    """A pattern that is none is an error of `server.allowed_urls`."""
    with pytest.raises(ConfigError, match="is no regular expression") as caught:
        config.parse({"server": {"allowed_urls": ["http://(.*"]}}, folder=tmp_path)
    assert caught.value.key == "server.allowed_urls"
    assert config.parse({}, folder=tmp_path).server.allowed_urls == ()


# --- addresses ---------------------------------------------------------------------------------------


@given(st.one_of(V4, NEAR, V6, GLOBAL_V6))
@example(ipaddress.ip_address("100.64.0.1"))
@example(ipaddress.ip_address("::ffff:8.8.8.8"))
def test_public_is_global(address):
    """What counts as public is global by the standard library too, and neither multicast, reserved nor link-local."""
    if reach(str(address)) is Reach.PUBLIC:
        assert address.is_global
        kinds = ("multicast", "reserved", "link_local", "loopback", "private", "unspecified")
        assert not any(getattr(address, f"is_{kind}") for kind in kinds)


@given(V4)
@example(ipaddress.IPv4Address("8.8.8.8"))
def test_most_of_the_internet_is_public(address):
    """An IPv4 address that is global by the standard library, and unicast, is public but for a few that are listed."""
    listed = ["192.88.99.0/24", "168.63.129.16/32", "192.0.0.0/24"]
    if address.is_global and not address.is_multicast and not address.is_reserved:
        assert (reach(str(address)) is Reach.PUBLIC) == (
            not any(address in ipaddress.ip_network(one) for one in listed)
        )


@given(V4)
def test_no_way_around_by_ipv6(address):
    """An IPv4 address inside an IPv6 one (mapped, compatible, translated, NAT64, 6to4, Teredo) is never public."""
    number = int(address)
    for inside in (
        0xFFFF << 32 | number,
        number,
        0xFFFF << 48 | number,
        0x64FF9B << 96 | number,
        0x64FF9B0001 << 80 | number,
        0x2002 << 112 | number << 80,
        0x20010000 << 96 | number << 64,
        0x20010000 << 96 | (number ^ 0xFFFFFFFF),
    ):
        assert reach(str(ipaddress.IPv6Address(inside))) is not Reach.PUBLIC


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        *(
            (one, Reach.PUBLIC)
            for one in ("8.8.8.8", "172.15.255.255", "172.32.0.0", "2606:4700::1111", "223.255.255.1")
        ),
        *((one, Reach.PRIVATE) for one in ("10.0.0.1", "172.16.0.1", "192.168.9.9", "100.64.0.1", "fd12::1")),
        *((one, Reach.SPECIAL) for one in ("127.0.0.1", "127.9.9.9", "0.0.0.1", "169.254.169.254", "224.0.0.1", "::1")),
        *((one, Reach.SPECIAL) for one in ("::", "fe80::1", "fe80::1%eth0", "ff02::1", "::ffff:10.0.0.1", "240.0.0.1")),
        *((one, Reach.SPECIAL) for one in ("64:ff9b::808:808", "100.100.100.200", "168.63.129.16", "fd00:ec2::254")),
        *((one, Reach.SPECIAL) for one in ("255.255.255.255", "2001:db8::1", "2002:7f00:1::1", "2001::1", "3fff::1")),
    ],
)
def test_addresses(address, expected):
    """Whose address it is, by IANA's registries; those that tell secrets of a cloud's instances are special."""
    assert reach(address) is expected


@given(st.one_of(V4, NEAR, V6), st.sampled_from(["localhost", "a.example", "10.0.0.1"]))
def test_who_may_be_asked(address, host):
    """Without a pattern that names the host only what is public; with one also private ones; others by no name."""
    text = str(address)
    assert may_ask(text, host, named=False) == (reach(text) is Reach.PUBLIC)
    if may_ask(text, "a.example", named=True):
        assert reach(text) is not Reach.SPECIAL
    assert may_ask(text, text, named=True)


def test_localhost_is_loopback_alone():
    """`localhost`, where it is named, is this machine, and nothing else that is special."""
    assert may_ask("127.0.0.1", "localhost", named=True)
    assert may_ask("::1", "localhost", named=True)
    assert not may_ask("169.254.169.254", "localhost", named=True)
    assert not may_ask("127.0.0.1", "localhost", named=False)


# --- redirects ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("/b.mar", "https://a.example/b.mar"),
        ("b.mar?x=1", "https://a.example/deep/b.mar?x=1"),
        ("../b.mar", "https://a.example/b.mar"),
        ("//b.example/b.mar", "https://b.example/b.mar"),
        ("http://b.example/b.mar", "http://b.example/b.mar"),
    ],
)
def test_where_redirects_lead(location, target):
    """A Location is read against the URL that gave it, as RFC 9110 says."""
    assert urls.redirected(parse("https://a.example/deep/m.mar?sig=1"), location).text == target


@pytest.mark.parametrize(
    "location",
    [
        "file:///etc/passwd",
        "ftp://a.example/m.mar",
        "http://u:p@a.example/",
        "http://a.example/%2e%2e/",
        "//[",
        "http://",
    ],
)
def test_redirects_to_nowhere(location):
    """A redirect to a file, another scheme, or what is no proper URL ends the download."""
    with pytest.raises(DownloadFailed, match="it was redirected to"):
        urls.redirected(parse("https://a.example/m.mar"), location)
