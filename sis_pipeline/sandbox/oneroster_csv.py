"""Writes what a system holds on a day as a OneRoster CSV set, 1.1 or 1.2, whole (bulk) or as changes since the day before.
The objects are OneRoster's own (`dialects.oneroster`); this module only flattens them into files."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

from sis_pipeline.sandbox.dialects.api import Json
from sis_pipeline.sandbox.dialects.oneroster import Entry, Words, instant
from sis_pipeline.sandbox.school_calendar import stamp
from sis_pipeline.sandbox.views import View

Version = Literal["1.1", "1.2"]
Mode = Literal["bulk", "delta"]

_HEAD = ("sourcedId", "status", "dateLastModified")
_USER = (
    *_HEAD, "enabledUser", "username", "userIds", "givenName", "familyName", "middleName", "identifier", "email", "sms",
    "phone", "agentSourcedIds", "grades", "password",
)  # fmt: skip
_COMMON: dict[str, tuple[str, ...]] = {
    "academicSessions": (*_HEAD, "title", "type", "startDate", "endDate", "parentSourcedId", "schoolYear"),
    "classes": (
        *_HEAD, "title", "grades", "courseSourcedId", "classCode", "classType", "location", "schoolSourcedId",
        "termSourcedIds", "subjects", "subjectCodes", "periods",
    ),
    "courses": (
        *_HEAD, "schoolYearSourcedId", "title", "courseCode", "grades", "orgSourcedId", "subjects", "subjectCodes",
    ),
    "demographics": (
        *_HEAD, "birthDate", "sex", "americanIndianOrAlaskaNative", "asian", "blackOrAfricanAmerican",
        "nativeHawaiianOrOtherPacificIslander", "white", "demographicRaceTwoOrMoreRaces", "hispanicOrLatinoEthnicity",
        "countryOfBirthCode", "stateOfBirthAbbreviation", "cityOfBirth", "publicSchoolResidenceStatus",
    ),
    "enrollments": (
        *_HEAD, "classSourcedId", "schoolSourcedId", "userSourcedId", "role", "primary", "beginDate", "endDate",
    ),
    "orgs": (*_HEAD, "name", "type", "identifier", "parentSourcedId"),
}  # fmt: skip
FILES: dict[Version, dict[str, tuple[str, ...]]] = {
    "1.1": {**_COMMON, "users": (*_HEAD, "enabledUser", "orgSourcedIds", "role", *_USER[4:])},
    "1.2": {
        **_COMMON,
        "users": (
            *_USER, "userMasterIdentifier", "resourceSourcedIds", "preferredGivenName", "preferredMiddleName",
            "preferredFamilyName", "primaryOrgSourcedId", "pronouns",
        ),
        "roles": (
            *_HEAD, "userSourcedId", "roleType", "role", "beginDate", "endDate", "orgSourcedId", "userProfileSourcedId",
        ),
    },
}  # fmt: skip
"""The columns of every file, in the order of the OneRoster CSV binding."""
_NOT_OURS = (
    "categories", "classResources", "courseResources", "lineItems", "resources", "results",
)  # fmt: skip


def write_bundle(
    view: View,
    target: Path,
    *,
    version: Version = "1.2",
    mode: Mode = "bulk",
    bom: bool = False,
    encoding: str = "utf-8",
) -> Path:
    """Write a view as a CSV set: a zip if `target` ends in `.zip`, else a folder that must be empty or absent.

    A delta holds the rows that changed since the day before and, as `tobedeleted`, those that are gone; it needs a day
    after the first. Returns `target`. Raises ValueError for a delta of day 1.
    """
    if mode == "delta" and view.day == 1:
        raise ValueError("a delta needs a day before it; day 1 has none")
    files = {name: _text(name, rows, version) for name, rows in _sets(view, version, mode).items()}
    files["manifest"] = _manifest(view, version, mode)
    mark = "\ufeff" if bom else ""
    contents = {f"{name}.csv": (mark + text).encode(encoding) for name, text in files.items()}
    if target.suffix == ".zip":
        _write_zip(target, contents)
    else:
        target.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            (target / name).write_bytes(content)
    return target


def _write_zip(target: Path, contents: dict[str, bytes]) -> None:
    """Members carry a fixed date: the same world gives the same bytes."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)


def _sets(view: View, version: Version, mode: Mode) -> dict[str, list[Json]]:
    now = _rows(view, version)
    if mode == "bulk":
        return now
    before = _rows(view.world.view(view.system.name, view.day - 1), version)
    return {name: _changed(before[name], rows, instant(stamp(view.date))) for name, rows in now.items()}


def _changed(before: list[Json], now: list[Json], at: str) -> list[Json]:
    earlier = {row["sourcedId"]: row for row in before}
    present = {row["sourcedId"] for row in now}
    gone = [
        {**row, "status": "tobedeleted", "dateLastModified": at} for row in before if row["sourcedId"] not in present
    ]
    return [row for row in now if earlier.get(row["sourcedId"]) != row] + gone


def _rows(view: View, version: Version) -> dict[str, list[Json]]:
    def option(name: str, default: Any) -> Any:
        return view.system.options.get(name, default)

    words = Words(view, version, lambda _collection, _id: None, option)
    wanted = [name for name in FILES[version] if name != "roles"]
    flat = _FLATTENED[version]
    rows = {name: [flat[name](entry.make()) for entry in words.entries(name)] for name in wanted}
    if not option("demographics", default=True):
        rows["demographics"] = []
    if version == "1.2":
        rows["roles"] = list(_roles(words.entries("users")))
    return rows


# --- flattening --------------------------------------------------------------------------------------------------


def _id(reference: Json | None) -> str | None:
    return reference["sourcedId"] if reference else None


def _ids(references: Iterable[Json]) -> list[str]:
    return [reference["sourcedId"] for reference in references]


def _session(row: Json) -> Json:
    return {**row, "parentSourcedId": _id(row["parent"])}


def _org(row: Json) -> Json:
    return {**row, "parentSourcedId": _id(row.get("parent"))}


def _course(row: Json) -> Json:
    return {**row, "orgSourcedId": _id(row["org"])}


def _class(row: Json) -> Json:
    return {
        **row, "courseSourcedId": _id(row["course"]), "schoolSourcedId": _id(row["school"]),
        "termSourcedIds": _ids(row["terms"]),
    }  # fmt: skip


def _enrollment(row: Json) -> Json:
    return {
        **row, "classSourcedId": _id(row["class"]), "schoolSourcedId": _id(row["school"]),
        "userSourcedId": _id(row["user"]),
    }  # fmt: skip


def _user(row: Json) -> Json:
    ids = [f"{{{known['type']}:{known['identifier']}}}" for known in row["userIds"]]
    return {**row, "userIds": ids, "agentSourcedIds": _ids(row["agents"])}


def _user_11(row: Json) -> Json:
    return {**_user(row), "orgSourcedIds": _ids(row["orgs"])}


def _user_12(row: Json) -> Json:
    """The CSV binding says given and family name where REST says first and last."""
    return {
        **_user(row), "preferredGivenName": row.get("preferredFirstName"), "primaryOrgSourcedId": _id(row.get("primaryOrg")),
    }  # fmt: skip


def _roles(users: Iterable[Entry]) -> Iterable[Json]:
    """One row per role; its id is made of the user's and its place."""
    for entry in users:
        user = entry.make()
        for role in user["roles"]:
            place = f"{user['sourcedId']}-{_id(role['org'])}-{role['role']}"
            head = {name: user[name] for name in ("status", "dateLastModified")}
            yield {
                **head, **role, "sourcedId": place, "userSourcedId": user["sourcedId"], "orgSourcedId": _id(role["org"]),
            }  # fmt: skip


def _same(row: Json) -> Json:
    return row


_SHARED: dict[str, Callable[[Json], Json]] = {
    "academicSessions": _session, "classes": _class, "courses": _course, "demographics": _same,
    "enrollments": _enrollment, "orgs": _org,
}  # fmt: skip
_FLATTENED: dict[Version, dict[str, Callable[[Json], Json]]] = {
    "1.1": {**_SHARED, "users": _user_11},
    "1.2": {**_SHARED, "users": _user_12},
}


# --- files -------------------------------------------------------------------------------------------------------


def _text(name: str, rows: list[Json], version: Version) -> str:
    columns = FILES[version][name]
    written = io.StringIO(newline="")
    writer = csv.writer(written, lineterminator="\r\n")
    writer.writerow(columns)
    writer.writerows([_cell(row.get(column)) for column in columns] for row in rows)
    return written.getvalue()


def _cell(value: Any) -> str:
    """Lists are commas inside one quoted cell; nothing is nothing."""
    if value is None:
        return ""
    return ",".join(value) if isinstance(value, list) else value if isinstance(value, str) else json.dumps(value)


def _manifest(view: View, version: Version, mode: Mode) -> str:
    rows = [
        ("propertyName", "value"), ("manifest.version", "1.0"), ("oneroster.version", version),
        *((f"file.{name}", mode) for name in FILES[version]), *((f"file.{name}", "absent") for name in _NOT_OURS),
        ("source.systemName", "Sandbox"), ("source.systemCode", view.system.name),
    ]  # fmt: skip
    written = io.StringIO(newline="")
    csv.writer(written, lineterminator="\r\n").writerows(rows)
    return written.getvalue()
