"""When two spellings are the same fact: names, email addresses, phone numbers, ids.
Whose facts they are is asked in `people` and `values`."""

from __future__ import annotations

import re
import unicodedata

WITHOUT_ACCENT = {"ß": "ss", "æ": "ae", "œ": "oe", "ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "ı": "i"}
"""Letters that are no base letter with an accent, as people type them who don't have them."""


def name(text: str | None) -> str | None:
    """Case, accents, punctuation and spaces do not count: O'Brien is OBRIEN, Zoë is zoe."""
    spelled = unicodedata.normalize("NFKD", (text or "").lower())
    plain = "".join(WITHOUT_ACCENT.get(letter, letter) for letter in spelled)
    return "".join(letter for letter in plain if unicodedata.category(letter)[0] in "LN") or None


def first_names(legal: str | None, preferred: str | None) -> frozenset[str]:
    """Maria del Mar is also Maria; the preferred name counts too."""
    words = re.split(r"[\s,]", (legal or "").strip())
    return _known(name(legal), name(words[0]), name(preferred))


def last_names(*names: str | None) -> frozenset[str]:
    """Garcia-Lopez is also Garcia, and Lopez; an initial is no last name. The preferred name counts too."""
    found = []
    for one in names:
        parts = re.split(r"[\s-]", (one or "").strip())
        ends = (parts[0], parts[-1]) if len(parts) > 1 else ()
        found += [name(one), *(name(part) for part in ends if len(part) > 1)]
    return _known(*found)


def email(text: str | None) -> str | None:
    """What has no @ identifies nobody."""
    address = (text or "").strip().lower()
    return address if "@" in address else None


def phone(text: str | None) -> str | None:
    """The digits, without an extension and without the trunk prefix of North America; fewer than seven are none."""
    number = re.sub(r"(x|ext|extension|#)\.?\s*\d+\s*$", "", (text or "").lower(), count=1)
    digits = re.sub(r"\D", "", number)
    trunk = re.fullmatch(r"0{0,2}1(\d{10})", digits)
    digits = trunk[1] if trunk else digits
    return digits if len(digits) >= 7 else None


def exact(text: str | None) -> str | None:
    """An id: 007 and 7 are two."""
    return (text or "").strip() or None


def _known(*names: str | None) -> frozenset[str]:
    return frozenset(one for one in names if one)
