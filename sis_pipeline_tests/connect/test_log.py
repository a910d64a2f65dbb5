"""Logs: both formats, and nothing in them that must not be."""

from __future__ import annotations

import io
import json
import logging
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from sis_pipeline.connect import log

SECRET = 'qu"ote\\and é+/=secret'


@pytest.fixture(autouse=True)
def _restore(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(log, "_secrets", log._Secrets())
    root = logging.getLogger()
    handlers, level = list(root.handlers), logging.getLogger("sis_pipeline").level
    yield
    root.handlers = handlers
    logging.getLogger("sis_pipeline").setLevel(level)
    structlog.reset_defaults()


def logged(log_format: str) -> tuple[io.StringIO, structlog.stdlib.BoundLogger]:
    stream = io.StringIO()
    log.configure(log_format, stream=stream)
    return stream, structlog.get_logger("sis_pipeline.test")


def fail(*values: object) -> None:
    raise ValueError(*values)


def test_json_is_one_object_per_line() -> None:
    stream, logger = logged("json")
    logger.info("page read", integration="lincoln", rows=3)
    logging.getLogger("sis_pipeline.other").warning("plain %s", "words")
    logger.debug("not at this level")
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (first["event"], first["integration"], first["rows"], first["level"]) == ("page read", "lincoln", 3, "info")
    assert second["event"] == "plain words"


def test_configuring_twice_writes_once() -> None:
    logged("json")
    stream, logger = logged("console")
    logger.info("page read", rows=3)
    assert stream.getvalue().count("page read") == 1
    assert "rows=3" in stream.getvalue()


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_secrets_are_masked_in_every_spelling(log_format: str) -> None:
    log.mask(SECRET)
    log.mask("secret")
    stream, logger = logged(log_format)
    logger.info(
        "here",
        value=SECRET,
        nested={"deep": [SECRET]},
        text=f"x{SECRET}y",
        address="qu%22ote%5Cand%20%C3%A9%2B%2F%3Dsecret",
    )
    logging.getLogger("sis_pipeline.other").error("as argument %r", SECRET)
    try:
        fail(SECRET, "Basic dXNlcjpwYXNzd29yZA==")
    except ValueError:
        logger.exception("failed", header="Bearer abc.def-ghi_jkl")
    text = stream.getvalue()
    for leak in ("secret", "ote", "dXNlcjpwYXNz", "abc.def"):
        assert leak not in text
    assert text.count(log.MASK) >= 6


def test_local_variables_stay_out_of_tracebacks() -> None:
    stream, logger = logged("console")
    local_only = "Zuzanna Kwiatkowska"
    try:
        fail(len(local_only))
    except ValueError:
        logger.exception("failed")
    assert "ValueError: 19" in stream.getvalue()
    assert local_only not in stream.getvalue().replace('local_only = "Zuzanna Kwiatkowska"', "")


def test_the_longest_secret_goes_first() -> None:
    log.mask("abcd")
    log.mask("abcdefgh")
    assert log.redacted("x abcdefgh y abcd z") == f"x {log.MASK} y {log.MASK} z"


def test_secrets_that_overlap_are_masked_as_one() -> None:
    for secret in ("abcdef", "defghi", "abcd"):
        log.mask(secret)
    assert log.redacted("x abcdefghi y") == f"x {log.MASK} y"
    assert log.redacted("abcdabcd") == log.MASK * 2


@given(st.lists(st.text("abcd", min_size=4, max_size=7), max_size=6), st.text("abcd ", max_size=60))
def test_nothing_of_any_secret_is_left(secrets: list[str], line: str) -> None:
    known = log._Secrets()
    for secret in secrets:
        known.add(secret, lasting=False)
    left = known.redact(line)
    assert not any(secret in left for secret in secrets)
    assert (left == line) == (not any(secret in line for secret in secrets))


def test_secrets_masked_by_many_threads_at_once_are_all_masked() -> None:
    """And a line written meanwhile is as free of secrets as any other."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    stop = threading.Event()

    def write() -> list[str]:
        lines = []
        while not stop.is_set():
            lines.append(log.redacted("with a known secret"))
        return lines

    def learn(thread: int) -> None:
        for number in range(100):
            log.mask(f"token {thread}-{number}")

    log.mask("known secret")
    try:
        with ThreadPoolExecutor(5) as pool:
            writer = pool.submit(write)
            list(pool.map(learn, range(4)))
            stop.set()
    finally:
        stop.set()
        sys.setswitchinterval(before)
    assert set(writer.result()) == {f"with a {log.MASK}"}
    shown = [name for name in (f"token {thread}-{number}" for thread in range(4) for number in range(100)) if log.redacted(name) != log.MASK]  # fmt: skip
    assert shown == []


def test_secrets_used_last_and_lasting_ones_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that runs for months opens new tokens all the time."""
    monkeypatch.setattr(log, "_secrets", log._Secrets(remembered=3))
    log.mask("encryption key", lasting=True)
    for name in ("used again", "forgotten", "Bäckerei/1"):
        log.mask(name)
    log.mask("used again")
    log.mask("encryption key")
    log.mask("the newest")
    line = "encryption key, used again, forgotten, B%C3%A4ckerei%2F1, the newest"
    assert log.redacted(line) == f"{log.MASK}, {log.MASK}, forgotten, {log.MASK}, {log.MASK}"
    for number in range(50):
        log.mask(f"{number} of fifty")
    assert len(log._secrets._recent) == 3
    assert len(log._secrets._spellings) <= 4 * 8
    assert len(log._secrets._lengths) == len(log._secrets._counted) <= 4 * 8


def test_a_line_costs_the_same_however_many_secrets_there_are() -> None:
    """Looked up by where they begin: a process that knows as many as it may looks as often as one that knows few."""
    looked_up = 0

    class Counting(dict[str, tuple[int, ...]]):
        def __contains__(self, start: object) -> bool:
            nonlocal looked_up
            looked_up += 1
            return super().__contains__(start)

    line = "a page of orgs was read " * 20
    costs = []
    for count in (10, 2_000):
        for number in range(count):
            log.mask(f"{number}-token-of-some-length")
        looked_up = 0
        log._secrets._lengths = Counting(log._secrets._lengths)
        assert log.redacted(line) == line
        costs.append(looked_up)
    assert costs == [len(line) - 3] * 2


def test_ordinary_text_is_left_alone() -> None:
    log.mask("of")
    log.mask("")
    line = "Basic plan of the bearer: 3 of 4 pages"
    assert log.redacted(line) == line


def test_what_a_library_writes_itself_is_not_written_again() -> None:
    stream, _ = logged("json")
    own = io.StringIO()
    library = logging.getLogger("library_with_a_handler")
    library.addHandler(logging.StreamHandler(own))
    quiet = logging.getLogger("library_without_one")
    quiet.addHandler(logging.NullHandler())
    try:
        library.getChild("part").warning("its own words")
        quiet.warning("left to us")
    finally:
        library.handlers.clear()
        quiet.handlers.clear()
    assert own.getvalue() == "its own words\n"
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["left to us"]


def test_stderr_is_the_one_of_the_moment(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    log.configure("json")
    exchanged = io.StringIO()
    with monkeypatch.context() as patch:
        patch.setattr("sys.stderr", exchanged)
        structlog.get_logger("sis_pipeline.test").warning("to the new one")
    assert "to the new one" in exchanged.getvalue()
    assert "".join(capsys.readouterr()) == ""
