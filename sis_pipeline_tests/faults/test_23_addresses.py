"""Addresses that lead inside: as settings, as the next page a server names, as a redirect. Nothing goes there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress

import pytest
from pydantic import ValidationError
from sqlalchemy import Engine, text

from sis_pipeline.connect.contract import OAuth, Request
from sis_pipeline.connect.errors import ConfigError, ContractError, SisError, TransientError
from sis_pipeline.connect.retry import Backoff
from sis_pipeline.connect.vault import Keys, Vault
from sis_pipeline.providers.base import HttpSettings, Pager
from sis_pipeline.providers.decoding import json_body, member, records
from sis_pipeline.providers.pagers import CursorPager, NextPathPager, OffsetPager
from sis_pipeline_tests.connect.servers import RawServer, http_answer, raw_server, writes
from sis_pipeline_tests.connect.workers import KEY, SECRET, Options, a_source
from sis_pipeline_tests.faults.network import Watch, watched
from sis_pipeline_tests.faults.rows import Recorder, Row

ROW = Row(
    23,
    "addresses that lead inside (127/8, 10/8, cloud metadata, IPv6, mapped, odd spellings, @host, other scheme, "
    "DNS rebinding), in settings, next links and redirects",
    "no connection is made, the token is never sent",
    180,
    "shapes x entry points",
)

NAMES = {
    "inside.example.org": lambda: ["10.1.2.3"],
    "metadata.example.org": lambda: ["169.254.169.254"],
    "loop.example.org": lambda: ["127.0.0.1"],
    "loop6.example.org": lambda: ["::1"],
    "local6.example.org": lambda: ["fd00::17"],
    "mapped.example.org": lambda: ["::ffff:10.1.2.3"],
    "both.example.org": lambda: ["93.184.216.34", "10.1.2.3"],
    "zero.example.org": lambda: ["0.0.0.0"],
}
PUBLIC = "93.184.216.34"

_HOSTS = (
    # private, shared, reserved, link-local, multicast, unspecified
    "10.0.0.1", "10.255.255.254", "172.16.0.1", "172.31.255.1", "192.168.0.1", "192.168.255.254", "100.64.0.1",
    "169.254.169.254", "169.254.170.2", "169.254.1.1", "192.0.0.192", "198.18.0.1", "0.0.0.0", "0.1.2.3",
    "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255", "192.0.2.7", "203.0.113.9",
    # IPv6, and IPv4 inside of it
    "[fd00::1]", "[fc00::1]", "[fe80::1]", "[::]", "[ff02::1]", "[::ffff:10.0.0.1]", "[::ffff:169.254.169.254]",
    "[::ffff:192.168.1.1]", "[::ffff:7f00:1]", "[::ffff:127.0.0.1]", "[2001:db8::1]", "[fd00:ec2::254]",
    "[64:ff9b::10.0.0.1]", "[64:ff9b::a9fe:a9fe]", "[2002:a00:1::1]",
    # spellings of 127.0.0.1, 10.0.0.1 and 169.254.169.254
    "2130706433", "0x7f000001", "017700000001", "0177.0.0.1", "0x7f.0.0.1", "127.1", "127.0.1", "0x7f.1", "10.1",
    "167772161", "2852039166", "0xa9fea9fe", "0251.0376.0251.0376",
    # names
    "inside.example.org", "metadata.example.org", "loop.example.org", "loop6.example.org", "local6.example.org",
    "mapped.example.org", "both.example.org", "zero.example.org",
)  # fmt: skip
SHAPES = (
    *(f"https://{host}/api" for host in _HOSTS),
    "https://sis.example.org@10.0.0.1/api",
    "https://sis.example.org:443@169.254.169.254/api",
    "https://10.0.0.1\\@sis.example.org/api",
    "http://10.0.0.1/api",
    "http://sis.example.org/api",
    "ftp://10.0.0.1/api",
    "file:///etc/passwd",
    "gopher://10.0.0.1:6379/_INFO",
)
NEAR = (
    "https://127.0.0.1:{port}/api",
    "http://127.0.0.1:{decoy}/api",
    "http://localhost:{decoy}/api",
    "//127.0.0.1:{decoy}/api",
    "http://127.0.0.1:{port}@127.0.0.1:{decoy}/api",
    "http://127.0.0.1:{port}.evil.example.org/api",
    "http://[::1]:{decoy}/api",
    "http://127.0.0.1:{decoy}\\@127.0.0.1:{port}/api",
)
"""Only for what a server names: as settings, these would be addresses of the sandbox."""


def test_there_are_enough_of_them() -> None:
    assert len(set(SHAPES)) == len(SHAPES) >= 60


@pytest.fixture
def decoy() -> Iterator[RawServer]:
    """Somebody else's server on loopback: whatever reaches it was led astray."""
    with raw_server(writes(http_answer(b'{"rows": []}'))) as server:
        yield server


def nothing_left(watch: Watch, decoy: RawServer, *servers: RawServer) -> None:
    assert watch.tried == []
    assert decoy.requests == []
    assert all(SECRET.encode() not in head for server in servers for head in server.requests)


def attempt(database: Engine, base_url: str, token_url: str | None) -> None:
    """Do what an integration with these addresses would do first: be added, and be called."""
    HttpSettings(base_url=base_url, token_url=token_url, client_id="client-1")
    oauth = OAuth(token_url, "client-1") if token_url else None
    with a_source(
        database, base_url, authorised=False, oauth=oauth, options=Options(base_url, connect_timeout=0.2)
    ) as source:
        source.send(Request("/students"))


@pytest.mark.parametrize("place", ["base_url", "token_url"])
def test_settings(database: Engine, decoy: RawServer, row: Recorder, place: str) -> None:
    Vault.open(database, Keys([KEY])).put("lincoln", "client_secret", SECRET)
    with raw_server(writes(http_answer(b"{}"))) as good, watched(good.url, names=NAMES) as watch:
        for shape in SHAPES:
            base, token = (shape, None) if place == "base_url" else (good.url, shape)
            with pytest.raises((ValidationError, ConfigError, TransientError)) as refused:
                attempt(database, base, token)
            # A spelling that nothing resolves fails as an unknown host: nothing was sent either.
            if isinstance(refused.value, TransientError):
                assert "host name could not be resolved" in str(refused.value)
            row.happened()
        assert good.requests == [], "no data call without a token"
    nothing_left(watch, decoy, good)
    row.ran(len(SHAPES))


def _decode(body: bytes) -> list[dict[str, object]]:
    return records(member(json_body(body, "the page"), ("rows",), "the page"), "the page")


PAGERS: dict[str, Pager] = {"offset": OffsetPager(1), "cursor": CursorPager(1), "path": NextPathPager(1)}


@pytest.mark.parametrize("pager", [*PAGERS, "as a path"])
def test_next_pages(database: Engine, decoy: RawServer, row: Recorder, pager: str) -> None:
    """Pagers take parameters from a link, never its address; the source refuses an address that is not its own."""
    with raw_server(writes()) as server, watched(server.url, names=NAMES) as watch:
        port, other = server.url.rpartition(":")[2], decoy.url.rpartition(":")[2]
        options = Options(f"{server.url}/api")
        with a_source(database, server.url, authorised=False, options=options) as source:
            for shape in (*SHAPES, *NEAR):
                there = shape.replace("{port}", port).replace("{decoy}", other)
                before = len(server.requests)
                if pager == "as a path":
                    with pytest.raises(SisError):
                        source.send(Request(there))
                    assert len(server.requests) == before
                else:
                    server.script = writes(_page_naming(there))
                    _walk(PAGERS[pager], source.send)
                    assert len(server.requests) > before, "the page that names the address was read"
                row.happened()
        assert set(watch.made) == {("127.0.0.1", int(port))} or not watch.made
    nothing_left(watch, decoy)
    row.ran(len(SHAPES) + len(NEAR))


def _page_naming(there: str) -> bytes:
    link = there + ("&" if "?" in there else "?") + "offset=1&cursor=next"
    body = json.dumps({"rows": [{"id": 1}], "Paging": {"Next": f"{there}/2/1"}}).encode()
    return http_answer(body, Link=f'<{link}>; rel="next"')


def _walk(pager: Pager, send: object) -> None:
    with suppress(ContractError):  # a path to another collection is refused
        for page in pager.pages(send, Request("/Generic/1/Student/1/1"), _decode):  # type: ignore[arg-type]
            if page.number == 3:
                break


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("where", ["data", "token"])
def test_redirects(database: Engine, decoy: RawServer, row: Recorder, status: int, where: str) -> None:
    Vault.open(database, Keys([KEY])).put("lincoln", "client_secret", SECRET)
    token = http_answer(b'{"access_token": "bearer-of-the-test", "token_type": "Bearer", "expires_in": 3600}')
    with (
        raw_server(writes(token)) as issuer,
        raw_server(writes()) as server,
        watched(server.url, issuer.url, names=NAMES) as watch,
    ):
        port, other = server.url.rpartition(":")[2], decoy.url.rpartition(":")[2]
        redirecting = server if where == "data" else issuer
        oauth = OAuth(f"{issuer.url}/token", "client-1")
        with a_source(database, server.url, oauth=oauth, backoff=Backoff(attempts=1, waits_for_turn=False)) as source:
            for shape in (*SHAPES, *NEAR):
                with database.begin() as connection:  # an open breaker would be waited for
                    connection.execute(text("delete from sis.circuit_breakers"))
                there = shape.replace("{port}", port).replace("{decoy}", other)
                redirecting.script = writes(http_answer(b"", f"{status} Moved", Location=there))
                before = len(redirecting.requests)
                with pytest.raises((ConfigError, TransientError)):
                    source.send(Request("/students"))
                row.happened(len(redirecting.requests) - before)
                row.ran()
        assert not any(b"bearer-of-the-test" in head for head in issuer.requests)
    nothing_left(watch, decoy)


def test_a_name_that_leads_elsewhere_the_second_time(database: Engine, decoy: RawServer, row: Recorder) -> None:
    """DNS rebinding: the address that was checked is the one connected to; the next connection is checked anew."""
    answers = iter([[PUBLIC], ["127.0.0.1"], ["10.0.0.1"]] + [["169.254.169.254"]] * 9)
    with watched(names={"rebound.example.org": lambda: next(answers)}) as watch:
        base = f"https://rebound.example.org:{decoy.url.rpartition(':')[2]}"
        with a_source(database, base, authorised=False) as source:
            with pytest.raises(ConfigError, match="not a public one"):
                source.send(Request("/students"))
            for _ in range(2):
                with pytest.raises(ConfigError, match="not a public one"):
                    source.send(Request("/students"))
    assert {address for address, _ in watch.tried} == {PUBLIC}, "the one connection went where the check had looked"
    assert watch.lookups.count("rebound.example.org") == 4, "one lookup per connection"
    assert decoy.requests == []
    row.happened(3)
    row.ran(3)
