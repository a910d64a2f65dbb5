"""A pytest class that a plugin's test subclasses to prove that its provider keeps the contract; ours do the same.
It needs pytest and a source (or recorded pages); what is right for one vendor only belongs in that vendor's own tests."""

# ruff: noqa: S101 asserting is what a test class is for
from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import ClassVar

import pandas as pd
import pytest

from sis_pipeline.connect.errors import ConfigError, ContractError, SisError
from sis_pipeline.providers.base import RESOURCE_NAME, HttpSettings, Plan, Provider, Source
from sis_pipeline.providers.reading import MemorySnapshot, Reading, read
from sis_pipeline.providers.registry import Registry, make
from sis_pipeline.roster.model import ENTITIES
from sis_pipeline.roster.school_year import SchoolYear

__all__ = ["ProviderConformance"]

HTML = b"<!DOCTYPE html><html><head><title>Sign in</title></head><body>Please sign in</body></html>"
SECRETS = ("secret", "password", "passwd", "api_key", "apikey", "access_token", "refresh_token", "private_key")


class ProviderConformance:
    """Subclass it, name it `Test...`, and override two or three fixtures:

    `provider`: your provider, made from valid settings. `source`: something with `send`, connected to a server with at
    least one school, student, section and enrollment. `school_year`: which year to read. For a source that can't be
    reached in a test, override `raw` instead of `source`, with the recorded pages of one snapshot (`MemorySnapshot`).

    `minimum_rows` says how many rows an entity must have at least; entities you don't deliver are left out of
    `capabilities.entities`.
    """

    minimum_rows: ClassVar[Mapping[str, int]] = {"students": 1, "schools": 1}

    # --- what a plugin gives -----------------------------------------------------------------------------------------

    @pytest.fixture
    def provider(self) -> Provider:
        raise NotImplementedError("override the fixture `provider`")

    @pytest.fixture
    def source(self) -> Source | None:
        """None where only recorded pages are there; override `raw` then."""
        return None

    @pytest.fixture
    def school_year(self) -> SchoolYear:
        return SchoolYear.parse("2025-2026")

    # --- what follows from it ----------------------------------------------------------------------------------------

    @pytest.fixture
    def plan(self, provider: Provider, source: Source | None, school_year: SchoolYear) -> Plan:
        if source is None:
            pytest.skip("no source is given, only recorded pages")
        return provider.plan(source, school_year, {})

    @pytest.fixture
    def snapshot(
        self, provider: Provider, source: Source, school_year: SchoolYear, plan: Plan
    ) -> tuple[MemorySnapshot, list[Reading]]:
        """Everything the plan names, read once, and how it was proven."""
        pages = MemorySnapshot(school_year)
        return pages, read(plan, source.send, provider.decode, pages)

    @pytest.fixture
    def raw(self, request: pytest.FixtureRequest, source: Source | None) -> MemorySnapshot:
        if source is None:
            raise NotImplementedError("override the fixture `source` or the fixture `raw`")
        pages: MemorySnapshot = request.getfixturevalue("snapshot")[0]
        return pages

    @pytest.fixture
    def frames(self, provider: Provider, raw: MemorySnapshot) -> dict[str, pd.DataFrame]:
        return provider.standardise(raw)

    # --- settings ----------------------------------------------------------------------------------------------------

    def test_is_named_and_made_as_the_registry_does(self, provider: Provider) -> None:
        registry = Registry({provider.name: type(provider)})
        again = make(provider.name, provider.settings.model_dump(mode="json"), registry)
        assert again.settings == provider.settings, "settings must survive being stored as JSON"

    def test_unknown_settings_are_refused_in_words(self, provider: Provider) -> None:
        settings = {**provider.settings.model_dump(mode="json"), "no_such_setting": "hunter2"}
        with pytest.raises(ConfigError) as refusal:
            make(provider.name, settings, Registry({provider.name: type(provider)}))
        assert "no_such_setting" in str(refusal.value)
        assert "hunter2" not in str(refusal.value), "an error must not repeat what was entered"

    def test_an_address_with_credentials_is_refused(self, provider: Provider) -> None:
        if not isinstance(provider.settings, HttpSettings):
            pytest.skip("it is not reached over HTTP")
        for name in ("base_url", "token_url"):
            settings = {**provider.settings.model_dump(mode="json"), name: "https://user:hunter2@sis.example/api"}
            with pytest.raises(ConfigError) as refusal:
                make(provider.name, settings, Registry({provider.name: type(provider)}))
            assert f"{name}: " in str(refusal.value), "the refusal must name the setting"
            assert "hunter2" not in str(refusal.value), "an error must not repeat what was entered"

    def test_settings_hold_no_secret(self, provider: Provider) -> None:
        named = [name for name in type(provider.settings).model_fields if any(secret in name for secret in SECRETS)]
        assert not named, f"secrets live in the vault, not in settings: {named}"

    def test_every_setting_is_described(self, provider: Provider) -> None:
        silent = [name for name, field in type(provider.settings).model_fields.items() if not field.description]
        assert not silent, f"settings without a description: {silent}"

    # --- reading -----------------------------------------------------------------------------------------------------

    def test_the_plan_says_how_many_calls_it_takes(self, plan: Plan) -> None:
        names = [resource.name for resource in plan.resources]
        assert names, "a plan must read something"
        assert len(names) == len(set(names)), "resource names must be unique: each is a folder of pages"
        odd = [name for name in names if not RESOURCE_NAME.fullmatch(name)]
        assert not odd, f"resources are named with letters, digits, hyphens and underscores only, unlike {odd}"
        assert plan.calls >= 0
        assert all(resource.identity for resource in plan.resources), "every resource needs the path of its record id"

    def test_every_reading_is_proven_complete(self, snapshot: tuple[MemorySnapshot, list[Reading]]) -> None:
        unproven = {reading.resource: reading.reason for reading in snapshot[1] if not reading.complete}
        assert not unproven, f"nothing may be concluded from these: {unproven}"

    def test_one_cheap_call_proves_the_connection(self, provider: Provider, source: Source | None) -> None:
        if source is None:
            pytest.skip("no source is given, only recorded pages")
        assert provider.check(source).strip(), "check must say something to the person"

    def test_a_page_of_html_is_no_data(self, provider: Provider, raw: MemorySnapshot) -> None:
        for resource in raw.resources:
            with pytest.raises(ContractError):
                provider.decode(resource, HTML)

    def test_an_answer_without_its_envelope_is_no_empty_page(self, provider: Provider, raw: MemorySnapshot) -> None:
        for resource in raw.resources:
            with pytest.raises(ContractError):
                provider.decode(resource, b'{"message": "The requested resource is not available"}')

    def test_a_cut_off_page_is_no_data(self, provider: Provider, raw: MemorySnapshot) -> None:
        for resource in raw.resources:
            for _, body in raw.bodies(resource):
                with pytest.raises(SisError):
                    provider.decode(resource, body[: len(body) // 2])

    def test_changes_are_asked_for_of_the_same_collections(
        self, provider: Provider, source: Source | None, school_year: SchoolYear, plan: Plan, raw: MemorySnapshot
    ) -> None:
        """And every page that a delta makes of them can be written and read again."""
        if source is None or not provider.capabilities.delta:
            pytest.skip("it can't be asked for changes")
        rows = {name: sum(len(provider.decode(name, body)) for _, body in raw.bodies(name)) for name in raw.resources}
        delta = provider.plan_delta(source, school_year, datetime.now(UTC) - timedelta(days=1), rows)
        assert {one.name for one in delta.resources} == {one.name for one in plan.resources}
        changing = [one for one in delta.resources if one.modified]
        assert delta.delta == (delta.since is not None) == bool(changing), "a delta says from when on, others do not"
        for resource in changing:
            records = [one for _, body in raw.bodies(resource.name) for one in provider.decode(resource.name, body)]
            assert list(provider.decode(resource.name, provider.encode(resource.name, records))) == records

    # --- standard frames ---------------------------------------------------------------------------------------------

    def test_frames_are_those_it_promises(self, provider: Provider, frames: dict[str, pd.DataFrame]) -> None:
        assert set(frames) == set(provider.capabilities.entities)
        assert set(frames) <= set(ENTITIES)
        for entity, least in self.minimum_rows.items():
            assert len(frames[entity]) >= least, f"{entity}: {len(frames[entity])} rows, expected at least {least}"

    def test_frames_hold_columns_of_the_model_as_text(self, frames: dict[str, pd.DataFrame]) -> None:
        for entity, frame in frames.items():
            strangers = [column for column in frame.columns if column not in ENTITIES[entity].names]
            assert not strangers, f"{entity} has columns the model does not know: {strangers}"
            typed = {column: str(dtype) for column, dtype in frame.dtypes.items() if str(dtype) != "str"}
            assert not typed, f"{entity} has columns that are not text: {typed}"

    def test_ids_are_there_and_unique(self, frames: dict[str, pd.DataFrame]) -> None:
        for entity, frame in frames.items():
            ids = frame["sis_id"]
            assert ids.notna().all(), f"{entity}: {int(ids.isna().sum())} rows have no sis_id"
            assert ids.str.strip().str.len().gt(0).all(), f"{entity}: some sis_id are blank"
            assert ids.is_unique, f"{entity}: {int(ids.duplicated().sum())} sis_id are there twice"

    def test_most_rows_are_valid(self, frames: dict[str, pd.DataFrame]) -> None:
        """A few rows of a real roster are bad; where most of an entity is, the mapping is."""
        from sis_pipeline.roster.validate import validate

        for entity, frame in frames.items():
            rejected = validate(entity, frame).rejected
            bad = rejected["row"].nunique() if len(rejected) else 0
            reasons = sorted({f"{row.column}: {row.reason}" for row in rejected.itertuples()}) if bad else []
            assert bad <= max(2, len(frame) // 10), f"{entity}: {bad} of {len(frame)} rows are not valid: {reasons}"

    def test_the_same_pages_give_the_same_frames(
        self, provider: Provider, raw: MemorySnapshot, frames: dict[str, pd.DataFrame]
    ) -> None:
        for entity, frame in provider.standardise(raw).items():
            pd.testing.assert_frame_equal(frame, frames[entity])
