"""What Dagster loads: the assets, jobs, schedules and sensors there are, and what each says about itself."""

from __future__ import annotations

import os
import subprocess
import sys

import dagster as dg
import pytest
import yaml

from sis_pipeline.defs.assembly import build_defs
from sis_pipeline.defs.assets import _primary_check
from sis_pipeline.defs.merging import DistrictMerge
from sis_pipeline.defs.metadata import bar_plot, table_schema
from sis_pipeline.defs.partitions import roster_key
from sis_pipeline.providers.registry import Failure, Registry, load_providers
from sis_pipeline.roster.model import STUDENTS
from sis_pipeline.roster.school_year import school_years
from sis_pipeline.settings import Settings
from sis_pipeline_tests.defs.conftest import THIS_YEAR, YEAR

PROVIDERS = ("infinite_campus", "oneroster", "oneroster_csv", "powerschool", "skyward")
MERGED = {
    "merged_students", "student_years", "conflicts", "enrollment_changes", "merged_staff", "merged_sections",
    "section_enrollments",
}  # fmt: skip


@pytest.fixture(scope="module")
def defs() -> dg.Definitions:
    return build_defs(settings=Settings(first_school_year=2024))


@pytest.fixture(scope="module")
def specs(defs) -> dict[str, dg.AssetSpec]:
    return {spec.key.to_user_string(): spec for spec in defs.resolve_all_asset_specs()}


def test_every_provider_has_its_two_assets_and_every_merge_its_tables(specs):
    of_providers = {f"{name}/{layer}" for name in PROVIDERS for layer in ("raw_roster", "roster")}
    assert set(specs) == of_providers | MERGED | {"published_roster"}


def test_jobs_schedules_and_sensors(defs):
    repository = defs.get_repository_def()
    assert set(repository.job_names) == {
        "__ASSET_JOB",
        "merge_rosters",
        "maintenance",
        "release_holds",
        *(f"sync_{name}" for name in PROVIDERS),
    }
    schedules = {one.name: one for one in repository.schedule_defs}
    assert set(schedules) == {
        "nightly_merge_rosters",
        "nightly_maintenance",
        *(f"nightly_sync_{name}" for name in PROVIDERS),
    }
    assert {one.default_status for one in schedules.values()} == {dg.DefaultScheduleStatus.RUNNING}
    sensors = {one.name: one.default_status for one in repository.sensor_defs}
    names = ("reconcile_integrations", "merge_when_changed", "keep_tokens_warm")
    assert sensors == dict.fromkeys(names, dg.DefaultSensorStatus.RUNNING)
    for name in repository.job_names:
        job = defs.resolve_job_def(name)
        assert job.executor_def.name == "in_process"
        assert name == "__ASSET_JOB" or int(job.run_tags["dagster/max_runtime"]) > 0


def test_partitions(specs):
    years = [year.key for year in school_years(2024, YEAR.first_day)]
    assert years[-1] == f"{YEAR.start + 1}-{YEAR.start + 2}"
    for name, spec in specs.items():
        if "/" not in name:
            assert spec.partitions_def.get_partition_keys() == years
            continue
        dimensions = {one.name: one.partitions_def for one in spec.partitions_def.partitions_defs}
        assert list(dimensions) == ["integration", "school_year"]
        assert dimensions["integration"].name == f"{name.split('/')[0]}_integrations"
        assert dimensions["school_year"].get_partition_keys() == years


def test_a_merge_depends_on_every_integration_of_its_year(defs):
    graph = defs.resolve_asset_graph()
    up, down = dg.AssetKey(["powerschool", "roster"]), dg.AssetKey("merged_students")
    mapping = graph.get_partition_mapping(down, up)
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("powerschool_integrations", ["a", "b"])
        needed = mapping.get_upstream_mapped_partitions_result_for_partitions(
            graph.get(down).partitions_def.empty_subset().with_partition_keys([THIS_YEAR]),
            graph.get(down).partitions_def,
            graph.get(up).partitions_def,
            dynamic_partitions_store=instance,
        ).partitions_subset.get_partition_keys()
    assert set(needed) == {roster_key("a", THIS_YEAR), roster_key("b", THIS_YEAR)}


def test_every_asset_says_what_it_is(specs):
    for name, spec in specs.items():
        assert spec.description, name
        assert spec.owners == ["team:roster"], name
        assert 1 <= len(spec.kinds) <= 3, name
        assert spec.group_name == (name.split("/")[0] if "/" in name else spec.group_name)
        if not name.endswith("raw_roster"):
            assert spec.metadata["dagster/column_schema"].columns, name
    assert {specs[name].group_name for name in MERGED} == {"merged"}
    assert specs["published_roster"].group_name == "published"
    assert specs["merged_students"].metadata["dagster/relation_identifier"] == "sis.students"


def test_columns_carry_the_models_constraints():
    columns = {column.name: column for column in table_schema(STUDENTS).columns}
    assert list(columns) == STUDENTS.names
    assert not columns["sis_id"].constraints.nullable
    assert columns["sis_id"].constraints.unique
    assert columns["school_sis_id"].constraints.other == ["refers to schools"]
    assert columns["last_name"].constraints.other == ["at most 255 characters"]
    assert columns["sex"].constraints.other == ["one of female, male, unspecified, other"]
    assert "personal" in columns["birth_date"].tags
    assert "personal" not in columns["grade_level"].tags


def test_every_check_of_a_roster_blocks_but_the_one_on_deltas(defs):
    checks = [key for key in defs.resolve_asset_graph().asset_check_keys if key.asset_key.path[-1] == "roster"]
    assert len(checks) == len(PROVIDERS) * 12
    open_ones = {key.name for key in checks if not defs.resolve_asset_graph().get_check_spec(key).blocking}
    assert open_ones == {"deltas_missed_nothing"}


def test_a_provider_that_is_broken_is_left_out_and_the_others_stay(capsys):
    whole = load_providers()
    rest = {name: one for name, one in whole.providers.items() if name != "skyward"}
    broken = Registry(rest, (Failure("skyward", "plugin:Skyward", "Importing it failed: ImportError."),))
    repository = build_defs(registry=broken).get_repository_def()
    assert "sync_skyward" not in repository.job_names
    assert "sync_powerschool" in repository.job_names
    assert "Importing it failed" in "".join(capsys.readouterr())


def test_the_code_location_is_valid_with_nothing_configured(tmp_path):
    """As Dagster's own command sees it: no SIS_* setting, no database, and nothing is opened."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SIS_", "DAGSTER_"))}
    done = subprocess.run(
        [sys.executable, "-m", "dagster", "definitions", "validate", "-m", "sis_pipeline.definitions"],
        env=clean,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert [path.name for path in tmp_path.iterdir()] == []


def test_the_shipped_configuration_is_accepted_and_says_what_matters(instance):
    assert type(instance.event_log_storage).__name__ == "PostgresEventLogStorage"
    assert type(instance.compute_log_manager).__name__ == "NoOpComputeLogManager"
    assert instance.run_monitoring_settings["free_slots_after_run_end_seconds"] > 0
    assert instance.run_monitoring_max_runtime_seconds > 0
    assert instance.run_retries_enabled
    assert instance.get_settings("run_retries")["retry_on_asset_or_op_failure"] is False
    assert not instance.telemetry_enabled
    limits = instance.get_concurrency_config().run_queue_config.tag_concurrency_limits
    per_integration = next(one for one in limits if one["key"] == "dagster/partition/integration")
    assert (per_integration["limit"], per_integration["value"]) == (1, {"applyLimitPerUniqueValue": True})
    assert os.environ["DAGSTER_REDACT_USER_CODE_ERRORS"] == "1"


def test_the_workspace_names_the_installed_module():
    from pathlib import Path

    import sis_pipeline

    workspace = yaml.safe_load((Path(sis_pipeline.__file__).parent.parent / "workspace.yaml").read_text())
    (module,) = workspace["load_from"]
    assert module == {"python_module": {"module_name": "sis_pipeline.definitions"}}


def test_plots_are_small():
    shown = bar_plot("rows", dict.fromkeys(("students", "staff", "section_enrollments", "sections"), 10000))
    assert shown.value.startswith("![rows](data:image/png;base64,")
    assert len(shown.value) < 12_000
    assert bar_plot("rows", {}).value == "-"


def test_a_second_primary_enrollment_is_a_warning_that_names_the_system_and_how_many():
    merged = DistrictMerge("lincoln", None, stats={"irregular": {"lincoln-ps": {"second_primary": 2}}})
    result = _primary_check("merged_students", [merged, DistrictMerge("washington", None)])
    assert (result.passed, result.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert "lincoln: lincoln-ps: of 2 students a second enrollment is called primary" in (result.description or "")
    assert _primary_check("merged_students", [DistrictMerge("washington", None)]).passed
