"""Keys that make spellings of one fact comparable: names, emails, phones and other text, as Polars expressions.
Keys are for comparing only; a source value is never replaced by its key."""

from __future__ import annotations

import polars as pl

_LETTERS = {"ß": "ss", "æ": "ae", "œ": "oe", "ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "ı": "i"}
"""Letters that Unicode does not decompose into a base letter and an accent."""


def blank_to_null(text: pl.Expr) -> pl.Expr:
    return pl.when(text.str.len_bytes() > 0).then(text)


def name_key(text: pl.Expr) -> pl.Expr:
    """Case, accents, punctuation and spaces do not count: O'Brien = OBRIEN, Zoë = zoe. Null where nothing is left."""
    return blank_to_null(plain_letters(text).str.replace_all(r"[^\p{L}\p{N}]", ""))


def plain_letters(text: pl.Expr) -> pl.Expr:
    """Lower case, with accents as characters of their own: what is not a letter can be left out."""
    return text.str.to_lowercase().str.normalize("NFKD").str.replace_many(_LETTERS)


def first_word_key(text: pl.Expr) -> pl.Expr:
    """The key of the first of several words: `Maria del Mar` and `Maria` share it."""
    return name_key(text.str.strip_chars().str.extract(r"^([^\s,]+)", 1))


def email_key(text: pl.Expr) -> pl.Expr:
    """Case and spaces round it do not count; null for what has no @, which identifies nobody."""
    trimmed = text.str.strip_chars().str.to_lowercase()
    return pl.when(trimmed.str.contains("@", literal=True)).then(trimmed)


def phone_key(text: pl.Expr) -> pl.Expr:
    """The digits, without an extension and without the North American trunk prefix 1; null below seven digits.

    A digits rule, not phonenumbers: keys are only compared with each other within a district, where numbers are
    written with or without the same country prefix, and a number needs no valid exchange to be the same number.
    """
    digits = (
        text.str.to_lowercase()
        .str.replace(r"(x|ext|extension|#)\.?\s*\d+\s*$", "")
        .str.replace_all(r"\D", "")
        .str.replace(r"^0{1,2}1(\d{10})$|^1(\d{10})$", "$1$2")
    )
    return pl.when(digits.str.len_bytes() >= 7).then(digits)


def exact_key(text: pl.Expr) -> pl.Expr:
    """Identifiers: only spaces round them do not count; `007` and `7` are two ids."""
    return blank_to_null(text.str.strip_chars())


def value_key(column: str) -> pl.Expr:
    """What two values of a student or staff column are compared by when asking whether the systems disagree.

    Ids are compared exactly, emails and phones by their keys, all other text by `name_key`; a value whose key is
    empty is compared as it is written.
    """
    value = pl.col(column)
    if column in {"ssid", "local_id", "ssid_issuer", "local_id_issuer", "state_staff_id"}:
        key = exact_key(value)
    elif column in {"email", "username"}:
        key = value.str.strip_chars().str.to_lowercase()
    elif column.endswith("phone"):
        key = phone_key(value)
    else:
        key = name_key(value)
    return pl.coalesce(key, value)
