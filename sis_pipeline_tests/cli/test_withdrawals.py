"""A bulk withdrawal on the command line: looked at, asked for, done, listed and taken back."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from sis_pipeline.cli.output import ExitCode
from sis_pipeline_tests.cli.test_accounts import published
from sis_pipeline_tests.store.conftest import uid

__all__ = ["published"]

WHY = ("--reason", "the school burned down")
ALL = ("enrollments", "withdraw", "--district", "lincoln", "--school", "North", "--effective", "2025-09-30", *WHY)


def test_a_school_is_withdrawn_after_a_look_and_taken_back(published, sis):
    plan = sis(*ALL, "--dry-run", "--json").json
    assert (plan["withdrawn"], plan["plan"]["statuses"], plan["plan"]["school_year"]) == (
        False, {"active": 2}, "2025-2026",
    )  # fmt: skip
    asked = sis(*ALL)
    assert (asked.code, "2 enrollments at North" in asked.out, "Add --yes" in asked.err) == (2, True, True)
    with published.connect() as connection:
        assert connection.scalar(text("select count(*) from sis.withdrawals")) == 0

    done = sis(*ALL, "--code", "W9", "--yes", "--json").json
    withdrawal_id = done["withdrawal"]["withdrawal_id"]
    assert (done["withdrawn"], done["withdrawal"]["enrollments"], done["withdrawal"]["exit_code"]) == (True, 2, "W9")
    listed = sis("enrollments", "withdrawals", "--district", "lincoln")
    assert (withdrawal_id in listed.out, WHY[1] in listed.out, "1 withdrawal" in listed.out) == (True, True, True)
    back = sis("enrollments", "reinstate", withdrawal_id, "--reason", "it was the other one")
    assert (back.code, "believes the systems again about 2 enrollments" in back.out) == (0, True)
    [kept] = sis("enrollments", "withdrawals", "--district", "lincoln", "--json").json["withdrawals"]
    assert kept["taken_back_at"] is not None
    assert sis("enrollments", "reinstate", withdrawal_id, *WHY).code == ExitCode.CONFIG
    said = sis(*ALL, "--yes")
    assert (said.code, "end with the next merge" in said.out, "reinstate" in said.out) == (0, True, True)


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        ((*ALL, "--dry-run", "--yes"), (ExitCode.USAGE, "Leave one of them out")),
        ((*ALL[:6], "--effective", "soon", *WHY), (ExitCode.USAGE, "--effective: 'soon' is not a day")),
        ((*ALL[:8], "--yes"), (ExitCode.USAGE, "reason")),
        ((*ALL, "--yes"), (ExitCode.CONFIG, "no published school")),
        (("enrollments", "reinstate", "ada", *WHY), (ExitCode.USAGE, "not a UUID")),
        (("enrollments", "reinstate", uid("nothing"), *WHY), (ExitCode.CONFIG, "There is no withdrawal")),
        (("enrollments", "withdrawals", "--district", "../lincoln"), (ExitCode.CONFIG, "lincoln")),
    ],
)
@pytest.mark.usefixtures("home")
def test_what_is_wrong_is_refused_in_words(sis, arguments, answer):
    said = sis(*arguments)
    assert (said.code, answer[1] in said.err) == (answer[0], True)
