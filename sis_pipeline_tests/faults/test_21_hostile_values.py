"""Values that break careless programs, as student's names and as whole documents: kept exactly, or set aside with a reason."""

from __future__ import annotations

import json
import multiprocessing
import random
import resource
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import psutil
import pytest

from sis_pipeline.connect.errors import ContractError
from sis_pipeline.providers.decoding import json_body
from sis_pipeline_tests.faults.pages import FLAVORS, Flavor, RecordedPage, flavor
from sis_pipeline_tests.faults.rows import Count, Recorder, Row
from sis_pipeline_tests.faults.test_22_duplicates import edited

ROW = Row(
    21,
    "formulas, SQL, NUL, lone surrogates, right-to-left and control characters, NA/None/Null as names, leading zeros, ids "
    "beyond 2^53, a 10 MB field, 10,000 levels of JSON, a million keys, keys twice, NaN and Infinity",
    "kept exactly or quarantined with a reason, in bounded memory",
    10_000,
    "values",
)

KNOWN = (
    "=1+1", "+1", "-1", "@SUM(A1)", "=cmd|' /C calc'!A0", "\t=1", "\r=1", "'; drop table students; --", "Robert'); --",
    "NA", "N/A", "None", "Null", "NULL", "nan", "NaN", "Infinity", "true", "00123", "0", "1e5", "9007199254740993",
    "123456789012345678901234567890", "\u0000", "a\u0000b", "\ud800", "a\udfffb", "\u202eevil", "\u200b", "\ufeffx", "e\u0301",
    "İ", "ß", "𝒳", "👩‍👩‍👧", "\u0007bell", "\x1b[31m", "a\nb", "a\r\nb", "a\u2028b", "{{7*7}}", "${jndi:ldap://x}", "%s%n",
    "../../etc/passwd", "<script>alert(1)</script>", '"quoted"', "a,b;c\td", "\\N", "\\.", "\\x00", "x" * 10_000, "   ",
    "&amp;", "%00", "a'b\"c`d", "O'Brien", "von der Öß", "Nguyễn", "李", "مریم", "שרה",
)  # fmt: skip


def a_value(chance: random.Random) -> str:
    if chance.random() < 0.5:
        return chance.choice(KNOWN)
    ranges = (
        (0x20, 0x7F), (0, 0x20), (0xA0, 0x24F), (0x300, 0x36F), (0x590, 0x6FF), (0x2000, 0x206F), (0xD800, 0xE000), (0x1F300, 0x1F6FF),
    )  # fmt: skip
    return "".join(chr(chance.randrange(*chance.choice(ranges))) for _ in range(chance.randint(1, 12)))


def places(value: Any, wanted: str) -> Iterator[tuple[Any, Any]]:
    """Where in a record a text stands."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        if value[key] == wanted:
            yield value, key
        else:
            yield from places(value[key], wanted)


class Names:
    """Gives students other last names in the vendor's own records, wherever those hold them."""

    def __init__(self, spoil: Flavor) -> None:
        self.spoil = spoil
        students = spoil.truth.frames["students"]
        self.last_names: Mapping[str, str] = dict(zip(students["sis_id"], students["last_name"], strict=True))

    def students_of(self, resource: str, record: Mapping[str, Any]) -> list[str]:
        own = self.spoil.identity(resource, record)
        named = self.spoil._people_by_name.get(str(record.get("NameID") or ""), set())
        return [one for one in {own, *named} if one in self.last_names]

    def given(self, page: RecordedPage, choose: Callable[[], str], chosen: dict[str, str]) -> RecordedPage:
        def change(records: list[Any]) -> None:
            for record in records:
                for student in self.students_of(page.resource, record):
                    for container, key in list(places(record, self.last_names[student])):
                        container[key] = chosen.setdefault(student, choose())

        return edited(page, change)


@pytest.mark.parametrize("name", FLAVORS)
def test_names_are_kept_exactly_or_set_aside(name: str, count: Count, chance: random.Random, row: Recorder) -> None:
    spoil = flavor(name, students=count(full=40, part=14))
    names, made, kept = Names(spoil), 0, 0
    while made < count(full=1_250, part=40):
        chosen: dict[str, str] = {}

        def choose() -> str:
            value = a_value(chance)
            return carried_by_csv(value) if name == "oneroster csv" else value

        outcome = spoil.bring_in([names.given(page, choose, chosen) for page in spoil.pages])
        students = outcome.frames["students"].set_index("sis_id")["last_name"]
        rejected = outcome.validated["students"].rejected
        for student, value in chosen.items():
            if student in students.index:
                assert students[student] == expected(value), "kept exactly"
                kept += 1
            else:
                reasons = rejected.loc[rejected["sis_id"] == student, "column"]
                assert "last_name" in set(reasons), f"{value!r} vanished without a reason"
        made += len(chosen)
        row.happened(len(chosen))
        assert chosen
    assert kept
    row.ran(made)


def carried_by_csv(value: str) -> str:
    """Without lone surrogates, which are not UTF-8, and without NUL, for which the whole file is refused (below)."""
    return value.encode("utf-8", "ignore").decode().replace("\0", "")


@pytest.mark.parametrize("value", [value for value in KNOWN if "\0" in value])
def test_a_csv_file_with_nul_is_refused_as_a_whole(value: str, row: Recorder) -> None:
    spoil = flavor("oneroster csv", students=14)
    names = Names(spoil)
    chosen: dict[str, str] = {}
    with pytest.raises(ContractError, match="holds NUL characters"):
        spoil.bring_in([names.given(page, lambda: value, chosen) for page in spoil.pages])
    row.happened(len(chosen))
    row.ran()


def expected(value: str) -> str:
    """What is kept of a text: all of it but blanks around it, and lone surrogates, which no encoding can store."""
    said: str = json.loads(json.dumps(value))
    return "".join("\ufffd" if "\ud800" <= one <= "\udfff" else one for one in said.strip())


DOCUMENTS: dict[str, Callable[[], bytes]] = {
    "10 MB field": lambda: json.dumps({"users": [{"sourcedId": "1", "familyName": "x" * 10_000_000}]}).encode(),
    "10,000 levels": lambda: b'{"users": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    "100,000 levels of objects": lambda: b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "a million keys": lambda: json.dumps({"users": [{f"k{n}": n for n in range(1_000_000)}]}).encode(),
    "keys twice": lambda: b'{"users": [{"sourcedId": "1", "sourcedId": "2"}]}',
    "NaN": lambda: b'{"users": [{"sourcedId": "1", "grade": NaN}]}',
    "Infinity": lambda: b'{"users": [{"sourcedId": "1", "grade": -Infinity}]}',
    "a number of 100,000 digits": lambda: b'{"users": [{"sourcedId": ' + b"9" * 100_000 + b"}]}",
    "a huge exponent": lambda: b'{"users": [{"sourcedId": 1e999999999}]}',
}
MEMORY = 1_000_000_000
"""Bytes, beside those that the imports have reserved."""


def decode(kind: str) -> str:
    limit = psutil.Process().memory_info().vms + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        json_body(DOCUMENTS[kind](), "the page")
    except ContractError:
        return "refused"
    return "read"


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_documents_are_read_or_refused_in_bounded_memory(kind: str, row: Recorder) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        result = pool.apply_async(decode, (kind,)).get(timeout=60)
    assert result == ("read" if kind in {"10 MB field", "a million keys", "keys twice"} else "refused")
    row.happened()
    row.ran()


BIG = 9_007_199_254_740_993


@pytest.mark.parametrize(
    "name", ["powerschool", "skyward qmlativ", pytest.param("skyward sms", marks=pytest.mark.faults)]
)
def test_ids_beyond_doubles_stay_exact(name: str, row: Recorder) -> None:
    """Numbers as ids: 2^53 + 1, which a double can't hold."""
    spoil = flavor(name, students=14)
    students = set(spoil.truth.frames["students"]["sis_id"])
    victim = min(students)
    changed = 0

    def enlarge(value: Any) -> Any:
        nonlocal changed
        if isinstance(value, dict):
            return {key: enlarge(one) for key, one in value.items()}
        if isinstance(value, list):
            return [enlarge(one) for one in value]
        if not isinstance(value, bool) and str(value) == victim:
            changed += 1
            return BIG if isinstance(value, int) else str(BIG)
        return value

    pages = [replace(page, body=json.dumps(enlarge(json.loads(page.body))).encode()) for page in spoil.pages]
    found = set(spoil.bring_in(pages).frames["students"]["sis_id"])
    assert found - students == {str(BIG)}
    row.happened(changed)
    row.ran()
