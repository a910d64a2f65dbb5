"""Spellings of one fact share a key, different facts don't."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sis_pipeline.roster.normalise import email_key, first_word_key, name_key, phone_key, value_key
from sis_pipeline_tests.roster.rosters import laws


def key(function: object, text: str | None) -> str | None:
    return pl.DataFrame({"x": pl.Series([text], dtype=pl.String)}).select(function(pl.col("x"))).item()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("O'Brien", "OBRIEN"),
        ("Zoë", "zoe"),
        ("Smith-Jones", "Smith Jones"),
        ("Łukasz", "Lukasz"),
        ("STRAẞE", "Strasse"),
        ("José ", "Jose"),
    ],
)
def test_spellings_of_a_name_share_a_key(one: str, other: str) -> None:
    assert key(name_key, one) == key(name_key, other)


@pytest.mark.parametrize("text", ["-", "", "  ", None])
def test_nothing_has_no_key(text: str | None) -> None:
    assert key(name_key, text) is None
    assert key(phone_key, text) is None
    assert key(email_key, text) is None


@laws(30)
@given(st.text(max_size=20))
def test_a_key_is_its_own_key(text: str) -> None:
    once = key(name_key, text)
    assert key(name_key, once) == once


@pytest.mark.parametrize("text", ["(512) 555-0100", "+1 512 555 0100", "512.555.0100 x12", "1-512-555-0100 ext. 4"])
def test_spellings_of_a_phone_share_a_key(text: str) -> None:
    assert key(phone_key, text) == "5125550100"


def test_other_countries_keep_their_prefix_and_short_numbers_have_no_key() -> None:
    assert key(phone_key, "+44 20 7946 0958") == "442079460958"
    assert key(phone_key, "911") is None


def test_an_email_without_an_at_sign_identifies_nobody() -> None:
    assert key(email_key, "none") is None
    assert key(email_key, " Ada@Example.ORG ") == "ada@example.org"


def test_the_first_of_several_first_names() -> None:
    assert key(first_word_key, "Maria del Mar") == "maria"


def test_ids_are_compared_exactly_and_names_are_not() -> None:
    frame = pl.DataFrame({"local_id": ["007", "7"], "last_name": ["Moss", "MOSS"], "home_city": ["-", "–"]})
    keys = frame.select(value_key("local_id"), value_key("last_name"), value_key("home_city"))
    assert keys["local_id"].n_unique() == 2
    assert keys["last_name"].n_unique() == 1
    assert keys["home_city"].n_unique() == 2
