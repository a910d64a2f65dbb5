"""The door against servers that misbehave on the wire, and against addresses it must not reach."""

from __future__ import annotations

import gzip
import ipaddress
import json
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pytest_httpserver import HTTPServer
from urllib3.util.connection import create_connection
from werkzeug import Request as ServerRequest
from werkzeug import Response as ServerResponse

from sis_pipeline.connect.addresses import is_loopback_name, origin
from sis_pipeline.connect.errors import Call, ConfigError, ContractError, SisError, TransientError
from sis_pipeline.connect.http import USER_AGENT, Door, Reply, checked_headers, expect_json
from sis_pipeline.connect.wire import Timeouts
from sis_pipeline_tests.connect.servers import Script, Sis, http_answer, raw_server, serve, writes

CALL = Call("lincoln", "GET", "/students")
FAST = Timeouts(connect=0.5, read=0.3, total=0.6)
BODY = json.dumps({"users": [{"id": number} for number in range(50)]}).encode()


def fetch(url: str, *, max_bytes: int = 1_000_000, timeouts: Timeouts = FAST) -> Reply:
    door = Door([url], timeouts=timeouts, max_bytes=max_bytes)
    try:
        return door.send(CALL, f"{url}/students", params={"filter": "hidden-parameter"})
    finally:
        door.close()


def reset(connection: socket.socket) -> None:
    connection.sendall(http_answer(BODY)[:-20])
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def drip(connection: socket.socket) -> None:
    connection.sendall(http_answer(BODY)[: -len(BODY)])
    for byte in BODY * 100:
        connection.sendall(bytes([byte]))
        time.sleep(0.02)


def drip_headers(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    for byte in b"X-Slow: yes\r\n" * 100:
        connection.sendall(bytes([byte]))
        time.sleep(0.02)


def silence(connection: socket.socket) -> None:
    connection.recv(1)


CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
UNFRAMED = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (reset, "reset|broke off"),
        (writes(http_answer(BODY)[:-1]), "broke off"),
        (writes(CHUNKED, b"8\r\n" + BODY[:8] + b"\r\n"), "broke off"),
        (writes(CHUNKED, b"40\r\n" + BODY[:8]), "broke off"),
        (writes(UNFRAMED, BODY[:-1]), "without a length and broke off"),
        (writes(b""), "closed the connection without an answer"),
        (writes(b"SSH-2.0-OpenSSH_9\r\n"), "not HTTP"),
        (writes(http_answer(b"not gzip at all", Content_Encoding="gzip")), "compression is broken"),
        (silence, "nothing was received for 0.3 s"),
        (drip, "did not arrive within 0.6 s"),
        (drip_headers, "did not arrive within 0.6 s"),
    ],
)
def test_what_the_network_does_is_transient_and_in_words(script: Script, words: str) -> None:
    began = time.monotonic()
    with raw_server(script) as server, pytest.raises(TransientError, match=words) as caught:
        fetch(server.url)
    assert len(server.requests) == 1, "the fault was reached once, and not retried here"
    assert time.monotonic() - began < 1.5
    assert "hidden-parameter" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__


@pytest.mark.parametrize(
    "script",
    [
        writes(http_answer(BODY)),
        writes(CHUNKED, b"%x\r\n" % len(BODY), BODY, b"\r\n0\r\n\r\n"),
        writes(UNFRAMED, BODY),
        writes(http_answer(gzip.compress(BODY), Content_Encoding="gzip")),
        writes(b"HTTP/1.1 100 Continue\r\n\r\n", http_answer(BODY)),
    ],
)
def test_whole_answers_arrive_whole(script: Script) -> None:
    with raw_server(script) as server:
        reply = fetch(server.url)
    assert (reply.status, reply.body) == (200, BODY)


def test_nobody_listening_and_no_such_host() -> None:
    with raw_server(silence) as server:
        gone = server.url
    with pytest.raises(TransientError, match="refused"):
        fetch(gone)
    with pytest.raises(TransientError, match="could not be resolved"):
        fetch("https://no-such-host.invalid")


def test_a_name_that_none_can_be_is_told_as_one_that_leads_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's own words for it are a UnicodeError; settings refuse such names before."""

    def resolve(host: str, *_: object, **__: object) -> None:
        host.replace("sis.example", "sis..example").encode("idna")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(TransientError, match="could not be resolved"):
        fetch("https://sis.example.org")


@pytest.mark.parametrize("host", ["sis.example.org.", f"{'a' * 63}.example.org", "[2606:4700::1111]", "localhost"])
def test_names_as_long_as_they_may_be(host: str) -> None:
    Door([f"https://{host}/api"]).close()


@contextmanager
def deaf(*addresses: str, port: int = 0) -> Iterator[int]:
    """A port of these addresses at which connecting never ends: the queue behind it is full."""
    with ExitStack() as stack:
        for address in addresses:
            listener = stack.enter_context(socket.create_server((address, port), backlog=0))
            port = listener.getsockname()[1]
            for _ in range(4):
                waiting = stack.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex((address, port))
        yield port


def leads_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Let `localhost` have these addresses."""
    real = socket.getaddrinfo

    def resolve(host: str, port: int, *arguments: object, **more: object) -> object:
        if host != "localhost":
            return real(host, port, *arguments, **more)  # type: ignore[arg-type]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)


def test_all_addresses_of_a_host_together_have_one_connect_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = [f"127.0.0.{number}" for number in range(2, 8)]
    leads_to(monkeypatch, *addresses)
    with deaf(*addresses) as port:
        began = time.monotonic()
        with pytest.raises(TransientError, match=r"no connection within 0\.3 s"):
            fetch(f"http://localhost:{port}", timeouts=Timeouts(connect=0.3, read=0.3, total=0.1))
        assert 0.25 < time.monotonic() - began < 0.9, "not 0.3 s for each of the six"


def test_a_dead_address_leaves_time_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has its share of what is left; what is sent later has the whole again."""
    leads_to(monkeypatch, "127.0.0.2", "127.0.0.3", "127.0.0.1")
    tried: list[float] = []
    sockets: list[socket.socket] = []

    def connect(address: tuple[str, int], timeout: float, **more: Any) -> socket.socket:
        tried.append(timeout)
        sockets.append(create_connection(address, timeout, **more))
        return sockets[-1]

    def turn() -> Iterator[float]:
        tried.append(sockets[-1].gettimeout() or 0)
        return iter(())

    monkeypatch.setattr("urllib3.util.connection.create_connection", connect)
    with raw_server(writes(http_answer(BODY))) as server:
        port = int(server.url.rsplit(":", 1)[1])
        door = Door([f"http://localhost:{port}"], timeouts=Timeouts(connect=0.6, read=0.6, total=0.6))
        with deaf("127.0.0.2", "127.0.0.3", port=port):
            assert door.send(CALL, f"http://localhost:{port}", turn=turn).body == BODY
        door.close()
    assert tried == [pytest.approx(0.2, abs=0.1)] * 3 + [0.6]


def test_a_gzip_bomb_is_cut_off() -> None:
    bomb = gzip.compress(b" " * 50_000_000)
    assert len(bomb) < 60_000
    script = writes(http_answer(bomb, Content_Encoding="gzip"))
    with raw_server(script) as server, pytest.raises(ContractError, match="more than 1,000,000 bytes"):
        fetch(server.url)


def test_an_error_keeps_a_piece_of_its_body_even_when_broken() -> None:
    with raw_server(writes(http_answer(b"x" * 200_000, "500 Oh"))) as server:
        assert len(fetch(server.url).body) == 64 * 1024
    with raw_server(writes(http_answer(b"too many requests", "403 No", Content_Length="500"))) as server:
        reply = fetch(server.url)
    assert (reply.status, reply.body) == (403, b"too many requests")


def test_redirects_are_not_followed() -> None:
    with raw_server(writes(http_answer(BODY))) as other:
        target = writes(http_answer(b"", "302 Found", Location=f"{other.url}/students"))
        with raw_server(target) as server:
            reply = fetch(server.url)
    assert reply.status == 302
    assert other.requests == []


def test_other_hosts_are_not_reached() -> None:
    with raw_server(writes(http_answer(BODY))) as own, raw_server(writes(http_answer(BODY))) as other:
        door = Door([own.url])
        for url in (other.url, own.url.replace("127.0.0.1", "localhost"), own.url.replace("http:", "https:")):
            with pytest.raises(ContractError, match="leave the integration's own addresses"):
                door.send(CALL, url, headers={"Authorization": "Bearer t"})
        port = own.url.rsplit(":", 1)[1]
        with pytest.raises(SisError):
            door.send(CALL, f"http://127.0.0.1:{port}@{other.url.removeprefix('http://')}/")
    assert own.requests == other.requests == []


@pytest.mark.parametrize(
    "url",
    [
        "http://sis.example.org",
        "http://10.0.0.1",
        "http://127.0.0.1.example.org",
        "ftp://127.0.0.1",
        "file:///etc/passwd",
        "https://user:password@sis.example.org",
        "https://",
        "sis.example.org",
        "https://[::1",
        "https://sis..example.org/api",
        "https://.example.org",
        "https://sis.example.org..",
        f"https://{'a' * 64}.example.org",
        f"https://{'sis.' * 63}example",
    ],
)
def test_addresses_that_no_door_is_opened_for(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Door([url])
    assert "password" not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("sis.example.org", "127.0.0.1"),
        ("sis.example.org", "10.1.2.3"),
        ("sis.example.org", "192.168.7.7"),
        ("sis.example.org", "169.254.169.254"),
        ("sis.example.org", "::1"),
        ("sis.example.org", "::ffff:10.1.2.3"),
        ("sis.example.org", "fe80::1"),
        ("sis.example.org", "fd00::1"),
        ("sis.example.org", "0.0.0.0"),
        ("2130706433", "127.0.0.1"),
        ("0x7f000001", "127.0.0.1"),
        ("localhost", "10.1.2.3"),
    ],
)
def test_names_that_lead_inside_are_refused(monkeypatch: pytest.MonkeyPatch, host: str, address: str) -> None:
    lookups: list[str] = []

    def resolve(name: str, port: int, **_: object) -> list[tuple[object, ...]]:
        lookups.append(name)
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return [(family, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(ConfigError, match="not a public one"):
        fetch(f"https://{host}" if host != "localhost" else "http://localhost")
    assert lookups == [host]


INSIDE = [
    "127.1", "127.0.1", "2130706433", "0x7f000001", "0x7f.0.0.1", "0177.0.0.1", "017700000001",
    "0", "0.0.0.0", "10.0.0.1", "10.255.255.255", "167772161", "0xa000001", "012.0.0.1", "172.16.0.1", "172.31.255.255",
    "192.168.0.1", "192.168.257", "100.64.0.1", "100.100.100.200", "169.254.169.254", "2852039166", "0xa9fea9fe",
    "0251.0376.0251.0376", "168.63.129.16", "192.0.0.192", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255",
    "[::]", "[::ffff:127.0.0.1]", "[::ffff:10.0.0.1]", "[::ffff:a9fe:a9fe]", "[::10.0.0.1]", "[fe80::1]",
    "[fd00::1]", "[fd00:ec2::254]", "[fc00::1]", "[ff02::1]", "[2002:7f00:1::1]", "[2002:a00:1::1]",
    "[64:ff9b::7f00:1]", "[64:ff9b::a9fe:a9fe]", "[64:ff9b:1::1]", "[2001:db8::1]", "[2001::1]",
]  # fmt: skip


@pytest.mark.parametrize("host", INSIDE)
def test_no_spelling_of_an_inside_address_is_connected_to(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    def connect(_self: socket.socket, address: object) -> None:
        pytest.fail(f"connected to {address}")

    monkeypatch.setattr(socket.socket, "connect", connect)
    with pytest.raises(ConfigError):
        fetch(f"https://{host}")


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "64:ff9b::808:808", "2002:808:808::1"])
def test_public_addresses_are_reached(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_a, **_k: [(2, 1, 6, "", (address, 443))])
    assert Door(["https://sis.example.org"])._addresses("sis.example.org", 443) == [address]


def test_a_name_is_looked_up_once_so_that_its_second_answer_leads_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS rebinding: the address that was checked is the one connected to."""
    real, asked = socket.getaddrinfo, list[str]()

    def resolve(host: str, port: int, *arguments: object, **more: object) -> object:
        asked.append(host)
        answer = "127.0.0.1" if asked.count("localhost") <= 1 else "127.9.9.9"
        return real(answer if host == "localhost" else host, port, *arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with serve(Sis()) as sis:
        door = Door([sis.url.replace("127.0.0.1", "localhost")])
        for _ in range(3):
            assert door.send(CALL, f"{sis.url.replace('127.0.0.1', 'localhost')}/open").status == 200
        door.close()
    assert asked.count("localhost") == 1
    assert len(sis.arrivals) == 3


@pytest.mark.parametrize(
    "link",
    [
        "{scheme}://user:password@{host}/students",
        "{scheme}://Bearer@{host}/students",
        "{scheme}://{host}@{other}/students",
        "{scheme}://{host}.{other}/students",
        "{scheme}://x{host}/students",
        "{scheme}://{other}#@{host}/students",
        "{scheme}://{other}?@{host}/students",
        "https://{host}/students",
        "ftp://{host}/students",
        "file://{host}/etc/passwd",
        "gopher://{host}/students",
        "{scheme}://127.0.0.1/students",
        "{scheme}://127.0.0.1:1/students",
        "{scheme}://127.0.0.2:{port}/students",
        "{scheme}://2130706433:{port}/students",
        "{scheme}://[::ffff:127.0.0.1]:{port}/students",
    ],
)
def test_no_link_leads_elsewhere_or_brings_credentials(link: str) -> None:
    with raw_server(writes(http_answer(BODY))) as own, raw_server(writes(http_answer(BODY))) as other:
        host = own.url.removeprefix("http://")
        url = link.format(
            scheme="http", host=host, other=other.url.removeprefix("http://"), port=host.partition(":")[2]
        )
        with pytest.raises(SisError):
            Door([own.url]).send(CALL, url, headers={"Authorization": "Bearer t"})
    assert own.requests == other.requests == []


def test_the_product_names_itself_with_its_version() -> None:
    assert f"sis_pipeline/{version('sis_pipeline')}" == USER_AGENT


def test_an_inside_address_can_be_allowed_but_not_the_metadata_service(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolves_to(address: str) -> None:
        answer = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 443))]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_a, **_k: answer)

    door = Door(["https://sis.example.org"], private_addresses=True)
    resolves_to("10.1.2.3")
    assert door._addresses("sis.example.org", 443) == ["10.1.2.3"]
    for address in ("169.254.169.254", "127.0.0.1", "224.0.0.1", "192.0.0.192"):
        resolves_to(address)
        with pytest.raises(ConfigError):
            door._addresses("sis.example.org", 443)


def test_the_environment_and_cookies_are_left_alone(httpserver: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[ServerRequest] = []

    def answer(request: ServerRequest) -> ServerResponse:
        seen.append(request)
        return ServerResponse(BODY, content_type="application/json", headers={"Set-Cookie": "session=1; Path=/"})

    httpserver.expect_request("/students").respond_with_handler(answer)
    with raw_server(silence) as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        monkeypatch.setenv("NO_PROXY", "")
        door = Door([httpserver.url_for("/")])
        for _ in range(2):
            door.send(CALL, httpserver.url_for("/students"))
    assert proxy.requests == []
    assert [request.headers["User-Agent"] for request in seen] == [USER_AGENT] * 2
    assert not any("Cookie" in request.headers or "Authorization" in request.headers for request in seen)


def test_connections_are_kept() -> None:
    with serve(Sis()) as sis:
        door = Door([sis.url])
        for _ in range(5):
            assert door.send(CALL, f"{sis.url}/open").status == 200
        pools = door._session.adapters["http://"].poolmanager.pools  # type: ignore[attr-defined]
        assert [pools[key].num_connections for key in pools.keys()] == [1]  # noqa: SIM118  not a dict


def test_a_turn_is_taken_on_a_live_connection_only() -> None:
    """The server hangs up while we wait: the request goes over a new connection, not into a failure."""

    listener = socket.create_server(("127.0.0.1", 0))
    heads: list[bytes] = []

    def hang_up_once() -> None:
        listener.accept()[0].close()
        connection = listener.accept()[0]
        heads.append(connection.recv(65536))
        connection.sendall(http_answer(BODY))
        connection.close()

    thread = threading.Thread(target=hang_up_once, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    assert Door([url], timeouts=FAST).send(CALL, url, turn=lambda: iter([0.05, 0.01])).body == BODY
    thread.join(2)
    listener.close()
    assert len(heads) == 1


def test_waiting_for_a_turn_does_not_count_towards_the_deadline() -> None:
    with serve(Sis()) as sis:
        door = Door([sis.url], timeouts=Timeouts(connect=0.2, read=0.2, total=0.2))
        reply = door.send(CALL, f"{sis.url}/open", turn=lambda: iter([0.25]))
    assert reply.status == 200
    assert reply.seconds < 0.2


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A self-signed certificate for localhost, with its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "server.pem"
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(private + built.public_bytes(pem))
    return path


def test_https_verifies_the_certificate(certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    listener = socket.create_server(("127.0.0.1", 0))
    heads: list[bytes] = []

    def run() -> None:
        for _ in range(2):
            raw, _ = listener.accept()
            try:
                with context.wrap_socket(raw, server_side=True) as connection:
                    heads.append(connection.recv(65536))
                    connection.sendall(http_answer(BODY))
            except OSError:
                raw.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    url = f"https://localhost:{listener.getsockname()[1]}"
    door = Door([url], timeouts=Timeouts(2, 2, 2))
    with pytest.raises(ConfigError, match="certificate could not be verified"):
        door.send(CALL, url, headers={"Authorization": "Bearer t"})
    assert heads == []
    door._session.verify = str(certificate)
    assert door.send(CALL, url).body == BODY
    thread.join(2)
    assert len(heads) == 1
    door.close()
    listener.close()


@pytest.mark.parametrize(
    ("content_type", "body", "fits"),
    [
        ("application/json", b"{}", True),
        ("application/json;charset=UTF-8", b"[]", True),
        ("text/json", b"[]", True),
        ("application/vnd.ims.oneroster+json", b"{}", True),
        ("", b"{}", True),
        ("text/html", b"<p>", False),
        ("application/json", b" <!DOCTYPE html><html>", False),
        ("text/plain", b"{}", False),
        ("application/xml", b"<a/>", False),
        ("application/json", b"", False),
        ("application/json", b" \n", False),
    ],
)
def test_only_json_passes_for_json(content_type: str, body: bytes, fits: bool) -> None:
    reply = Reply(200, {"content-type": content_type}, body, 0.1)
    if fits:
        expect_json(CALL, reply)
        return
    with pytest.raises(ContractError) as caught:
        expect_json(CALL, reply)
    assert caught.value.context["status"] == 200
    assert ("HTML page" in caught.value.message) == (b"<p>" in body or b"html" in body)


@pytest.mark.parametrize(
    "headers", [{"Authorization": "x"}, {"host": "x"}, {"X-A": "a\r\nB: c"}, {"X A": "a"}, {"X-A": "é"}, {"": "a"}]
)
def test_headers_that_cannot_be_set(headers: dict[str, str]) -> None:
    with pytest.raises(ConfigError) as caught:
        checked_headers(headers)
    assert "B: c" not in str(caught.value)


def test_origins() -> None:
    assert origin("https://SIS.example.org/a?b#c") == "https://sis.example.org:443"
    assert origin("http://127.0.0.1:8080") == "http://127.0.0.1:8080"
    assert is_loopback_name("127.9.9.9")
    assert is_loopback_name("[::1]")
    assert not is_loopback_name("localhost.example.org")
