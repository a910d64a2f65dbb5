"""Which thresholds can be set, to what, and that a wrong one is refused in words."""

from __future__ import annotations

import pytest

from sis_pipeline.roster.thresholds import DEFAULTS, Thresholds, parse


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("district_cap", "400", 400), ("school_share", "0.15", 0.15), ("school_share", "15%", 0.15),
        ("freeze", "no", False), ("freeze_before_end", "0", 0), ("week_share", "1", 1.0),
    ],
)  # fmt: skip
def test_a_value_as_a_person_writes_it(name: str, text: str, value: object) -> None:
    found = parse(name, text)
    assert found == pytest.approx(value)
    assert type(found) is type(DEFAULTS[name])


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("district_cap", "many", "takes a whole number, not 'many'"),
        ("district_cap", "2.5", "takes a whole number"),
        ("district_cap", "-1", "out of bounds"),
        ("district_cap", "inf", "takes a whole number"),
        ("school_share", "nan", "out of bounds"),
        ("school_share", "15", "goes from 0 to 1"),
        ("freeze", "1", "takes yes or no"),
        ("freeze_before_start", "400", "goes from 0 to 120"),
        ("schools", "1", "can't be set for a district; choose one of district_floor"),
    ],
)
def test_what_is_wrong_is_said(name: str, text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse(name, text)


def test_a_school_has_only_what_makes_sense_for_one() -> None:
    assert Thresholds.of({}, {"s": {"school_floor": 9}}).school(10, "s") == 9
    assert Thresholds.of({}, {"s": {"school_floor": 9}}).school(10, "t") == 2
    with pytest.raises(ValueError, match=r"can't be set for a single school; choose one of school_floor, school_share"):
        Thresholds.of({}, {"s": {"district_cap": 9}})


def test_limits_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="one of them never counts"):
        Thresholds.of({"district_floor": 300})


def test_the_same_settings_are_the_same_thresholds() -> None:
    one = Thresholds.of({"exit_floor": 9}, {"s": {"school_floor": 1}, "a": {"school_share": 0.5}, "x": {}})
    other = Thresholds.of({"exit_floor": 9}, {"a": {"school_share": 0.5}, "s": {"school_floor": 1}})
    assert repr(one) == repr(other)
    assert Thresholds.of({}) == Thresholds()
