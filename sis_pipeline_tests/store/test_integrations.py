"""The registry says no in words, and every change leaves its audit row."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text

from sis_pipeline.connect.errors import AuthRevokedError, ConfigError
from sis_pipeline.db import audit
from sis_pipeline.db.tables import oauth_tokens
from sis_pipeline.store.integrations import Integration, Integrations, check_district, check_key, district_of
from sis_pipeline.store.locks import integration_lock
from sis_pipeline_tests.store.conftest import YEAR, good_snapshot

SETTINGS = {
    "base_url": "https://ps.lincoln.example",
    "token_url": "https://ps.lincoln.example/oauth/access_token",
    "client_id": "id",
}

REFUSED = AuthRevokedError("the client secret was refused", code="auth_revoked.client")


def lincoln(key="lincoln-ps", **values) -> Integration:
    return Integration(**{"key": key, "provider": "oneroster", "district": "lincoln", "settings": SETTINGS, **values})


@pytest.fixture
def registry(database) -> Integrations:
    return Integrations(database)


def audited(database) -> list[tuple[str, str, str, str]]:
    with database.connect() as connection:
        rows = connection.execute(text("select action, subject, district, actor from sis.audit_log order by entry"))
        return [tuple(row) for row in rows]


def test_what_was_added_is_what_is_found(registry, database):
    wanted = lincoln(organisations={"9": "washington"}, priority=10)
    assert registry.add(wanted, actor="ada") == wanted
    assert registry.get("lincoln-ps") == wanted
    assert audited(database) == [("integration.add", "lincoln-ps", "lincoln", "ada")]


def test_an_existing_key_is_refused_unless_it_is_to_be_replaced(registry, database):
    registry.add(lincoln())
    with pytest.raises(ConfigError, match="There is an integration lincoln-ps already"):
        registry.add(lincoln(priority=1))
    assert registry.get("lincoln-ps").priority == 100
    registry.note_sync("lincoln-ps", REFUSED)
    replaced = registry.add(lincoln(priority=1), replace=True, actor="ada")
    assert (replaced.priority, replaced.status, replaced.status_reason) == (1, "healthy", None)
    assert audited(database)[1:] == [
        ("integration.status", "lincoln-ps", "lincoln", audit.current_actor()),
        ("integration.status", "lincoln-ps", "lincoln", "ada"),
        ("integration.replace", "lincoln-ps", "lincoln", "ada"),
    ]


def test_a_move_to_another_district_locks_both_chains_in_the_order_of_all_others(registry, database):
    """One after the other as it came, it would hold the old district's chain while it waits for the new one's."""
    registry.add(lincoln(district="washington"))
    registry.note_sync("lincoln-ps", REFUSED)
    waiting = text("select count(*) from pg_locks where locktype = 'advisory' and not granted")
    with ThreadPoolExecutor(1) as pool, database.connect() as other:
        audit.append(other, "a", "b", district="adams")
        moved = pool.submit(registry.add, lincoln(district="adams"), replace=True, actor="ada")
        while other.scalar(waiting) == 0:
            assert not moved.done()
        other.execute(text("set local lock_timeout = '2s'"))
        audit.append(other, "c", "d", district="washington")  # nobody has it
        other.commit()
        assert moved.result(10).district == "adams"
    assert set(audited(database)[-2:]) == {
        ("integration.status", "lincoln-ps", "washington", "ada"),
        ("integration.replace", "lincoln-ps", "adams", "ada"),
    }


def test_replacing_keeps_a_paused_one_paused_and_its_provider(registry):
    registry.add(lincoln())
    registry.pause("lincoln-ps", "ada", "the district asked")
    assert registry.add(lincoln(priority=1), replace=True).paused
    with pytest.raises(ConfigError, match="is a oneroster integration; it can't become powerschool"):
        registry.add(lincoln(provider="powerschool"), replace=True)


@pytest.mark.parametrize(
    "key", ["", "A", "-a", "a/b", "..", "a|b", "a,b", "a b", "a_b", "x" * 64, "a\n", "../../etc/passwd", "ä"]
)
def test_keys_are_slugs(registry, key):
    with pytest.raises(ConfigError, match="can't be the key"):
        registry.add(lincoln(key))
    with pytest.raises(ConfigError, match="can't be the key"):
        registry.get(key)
    assert registry.list() == []


@pytest.mark.parametrize("key", ["a", "0", "lincoln-ps-2", "x" * 63])
def test_good_keys_pass(key):
    assert check_key(key) == key


@pytest.mark.parametrize("district", ["", "..", "a/b", ".x", "a b", "x" * 64])
def test_districts_are_folder_names(registry, district):
    with pytest.raises(ConfigError, match="can't be the id of a district"):
        registry.add(lincoln(district=district))
    with pytest.raises(ConfigError):
        registry.add(lincoln(organisations={"1": district}))
    assert check_district("4807710") == "4807710"


def test_settings_are_checked_by_the_provider_and_never_repeated(registry, database):
    with pytest.raises(ConfigError) as caught:
        registry.add(lincoln(settings={**SETTINGS, "client_secret": "Zyx-secret"}))
    assert "Zyx" not in str(caught.value)
    with pytest.raises(ConfigError, match="nosuch"):
        registry.add(lincoln(provider="nosuch"))
    assert registry.list() == []
    assert audited(database) == []


def test_the_audit_row_names_changed_settings_without_their_values(registry, database):
    registry.add(lincoln())
    registry.add(lincoln(settings={**SETTINGS, "client_id": "Zyx"}), replace=True)
    with database.connect() as connection:
        details = connection.scalars(text("select details from sis.audit_log order by entry")).all()
    assert details[1]["settings"] == ["client_id"]
    assert "Zyx" not in str(details)


def test_an_unknown_key_says_which_come_near(registry):
    registry.add(lincoln())
    registry.add(lincoln("washington-ic", district="washington"))
    with pytest.raises(ConfigError, match=r"There is no integration lincoln-pz\. Did you mean lincoln-ps\?"):
        registry.get("lincoln-pz")
    with pytest.raises(ConfigError, match=r"There is no integration zzz\. `sis integration list`"):
        registry.pause("zzz")


def test_listing_filters_by_provider_district_and_pause(registry):
    registry.add(lincoln("b-shared", organisations={"9": "washington"}))
    registry.add(lincoln("a-own"))
    registry.pause("a-own")
    assert [one.key for one in registry.list()] == ["a-own", "b-shared"]
    assert [one.key for one in registry.list(include_paused=False)] == ["b-shared"]
    assert [one.key for one in registry.list(district="washington")] == ["b-shared"]
    assert [one.key for one in registry.list(provider="powerschool")] == []


def test_only_a_person_ends_a_pause(registry, database):
    registry.add(lincoln())
    registry.pause("lincoln-ps", "ada", "maintenance")
    registry.note_sync("lincoln-ps", REFUSED)
    assert (registry.get("lincoln-ps").status, registry.get("lincoln-ps").status_reason) == ("paused", "maintenance")
    assert registry.resume("lincoln-ps", "ada").status == "healthy"
    with pytest.raises(ConfigError, match="is not paused"):
        registry.resume("lincoln-ps")
    assert [action for action, *_ in audited(database)] == [
        "integration.add",
        "integration.pause",
        "integration.resume",
    ]


def test_removing_takes_two_steps_and_the_tokens_with_it(registry, database, snapshots):
    registry.add(lincoln())
    good_snapshot(snapshots)
    with database.begin() as connection:
        for key in ("lincoln-ps", "other"):
            connection.execute(
                oauth_tokens.insert().values(integration=key, kind="access", ciphertext=b"x", key_id="k", version=1)
            )
    with pytest.raises(ConfigError, match="lincoln-ps is not paused"):
        registry.remove("lincoln-ps")
    registry.pause("lincoln-ps")
    registry.remove("lincoln-ps", "ada")
    assert registry.list() == []
    with database.connect() as connection:
        assert connection.scalars(text("select integration from sis.oauth_tokens")).all() == ["other"]
    assert snapshots.latest("lincoln-ps", YEAR).good
    assert audited(database)[-1] == ("integration.remove", "lincoln-ps", "lincoln", "ada")


def test_one_that_is_being_synced_is_removed_only_by_force(registry, database, snapshots):
    registry.add(lincoln())
    registry.pause("lincoln-ps")
    with integration_lock(database, "lincoln-ps", YEAR):
        snapshots.begin("lincoln-ps", "oneroster", YEAR)
        with pytest.raises(ConfigError, match=f"being synced for {YEAR} right now"):
            registry.remove("lincoln-ps")
    registry.remove("lincoln-ps")  # the reading is unfinished for ever, but nobody is reading


def test_force_removes_one_that_is_being_synced(registry, database, snapshots):
    registry.add(lincoln())
    registry.pause("lincoln-ps")
    with integration_lock(database, "lincoln-ps", YEAR):
        snapshots.begin("lincoln-ps", "oneroster", YEAR)
        registry.remove("lincoln-ps", force=True)
    assert registry.list() == []


def test_organisations_belong_to_the_integrations_district_unless_mapped():
    shared = lincoln(organisations={"9": "washington"})
    assert [district_of(shared, one) for one in ("9", "1", None)] == ["washington", "lincoln", "lincoln"]
    assert shared.districts == {"lincoln", "washington"}
