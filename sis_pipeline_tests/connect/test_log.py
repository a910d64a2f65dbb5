"""Logs: both formats, and nothing in them that must not be."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from sis_pipeline.connect import log

SECRET = 'qu"ote\\and é+/=secret'


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    root, secrets = logging.getLogger(), dict(log._secrets)
    handlers, level = list(root.handlers), logging.getLogger("sis_pipeline").level
    yield
    root.handlers = handlers
    logging.getLogger("sis_pipeline").setLevel(level)
    log._secrets.clear()
    log._secrets.update(secrets)
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
