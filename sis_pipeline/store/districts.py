"""Which of an integration's records belong to which district, where one system serves several (consortia, shared centres).
Pure frame work on standard entities; what is then merged is the roster's business."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from sis_pipeline.store.integrations import Integration, district_of

Records = Mapping[str, pl.DataFrame]


def of_district(integration: Integration, records: Records, district: str) -> dict[str, pl.DataFrame]:
    """The records that belong to a district: of its schools, and whoever is enrolled, teaches or is a contact there.

    A record without a school (a shared course, a session of all schools) belongs to every district; a student without
    a school and without an enrollment to the integration's own.
    """
    if integration.districts == {district}:
        return dict(records)
    schools = _schools(integration, records["schools"], district)
    found = {entity: _at_schools(frame, schools) for entity, frame in records.items()}
    found["schools"] = records["schools"].filter(pl.col("sis_id").is_in(schools.implode()))
    if "sections" in records:
        found["section_enrollments"] = _rows(
            records, "section_enrollments", "section_sis_id", found["sections"]["sis_id"]
        )
    if "students" in records:
        found["students"] = _students(integration, records, found, schools, district)
        for entity in ("contacts", "enrollments"):
            if entity in found:
                found[entity] = _rows(found, entity, "student_sis_id", found["students"]["sis_id"])
    if "staff" in records:
        found["staff"] = _staff(records["staff"], found, schools)
    return {entity: found[entity] for entity in records}


def _schools(integration: Integration, schools: pl.DataFrame, district: str) -> pl.Series:
    """The organisations of a district: mapped themselves, else as the nearest mapped organisation above them."""
    above = dict(schools.select("sis_id", "parent_sis_id").iter_rows())

    def nearest(organisation: str) -> str:
        seen: set[str] = set()
        at: str | None = organisation
        while at and at not in seen and at not in integration.organisations:
            seen.add(at)
            at = above.get(at)
        return district_of(integration, at)

    return pl.Series([one for one in above if nearest(one) == district], dtype=pl.String)


def _at_schools(frame: pl.DataFrame, schools: pl.Series) -> pl.DataFrame:
    if "school_sis_id" not in frame.columns:
        return frame
    return frame.filter(pl.col("school_sis_id").is_in(schools.implode()) | pl.col("school_sis_id").is_null())


def _rows(records: Records, entity: str, column: str, ids: pl.Series) -> pl.DataFrame:
    return records[entity].filter(pl.col(column).is_in(ids.implode()))


def _students(
    integration: Integration, records: Records, found: Records, schools: pl.Series, district: str
) -> pl.DataFrame:
    none = pl.Series([], dtype=pl.String)
    here = found["enrollments"]["student_sis_id"] if "enrollments" in found else none
    anywhere = records["enrollments"]["student_sis_id"] if "enrollments" in records else none
    student, school = pl.col("sis_id"), pl.col("school_sis_id")
    homeless = school.is_null() & ~student.is_in(anywhere.implode()) & pl.lit(district == integration.district)
    return records["students"].filter(school.is_in(schools.implode()) | student.is_in(here.implode()) | homeless)


def _staff(staff: pl.DataFrame, found: Records, schools: pl.Series) -> pl.DataFrame:
    """Who works at a school of the district, teaches there, or has no school at all."""
    several = pl.col("school_sis_ids").str.json_decode(pl.List(pl.String))
    here = pl.col("school_sis_id").is_in(schools.implode()) | several.list.set_intersection(
        schools.to_list()
    ).list.len().gt(0)
    teaching = pl.lit(value=False)
    if "section_enrollments" in found:
        teaching = pl.col("sis_id").is_in(found["section_enrollments"]["person_sis_id"].implode())
    nowhere = pl.col("school_sis_id").is_null() & several.list.len().fill_null(0).eq(0)
    return staff.filter(here.fill_null(value=False) | teaching | nowhere)
