"""What the Dagster UI shows about a table: its columns and constraints, counts, and small plots of counts.
Everything is derived from roster.model or from counts; no value of a row ever gets here."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from sis_pipeline.roster.model import Column, Table

OWNERS = ["team:roster"]
PLOT_INCHES = (5.2, 1.9)
PLOT_DPI = 80
BAR_COLOUR = "#3e6fb0"


def table_schema(table: Table) -> dg.TableSchema:
    """The table's columns with types, descriptions and constraints; columns with personal values are tagged."""
    return dg.TableSchema(columns=[_column(column, table) for column in table])


def definition_metadata(table: Table, relation: str | None = None) -> dict[str, Any]:
    """Metadata of an asset that holds one table: its columns and, where published, the relation in PostgreSQL."""
    shown: dict[str, Any] = {"dagster/column_schema": table_schema(table)}
    return shown | ({"dagster/relation_identifier": relation} if relation else {})


def entities_schema(tables: Mapping[str, Table]) -> dg.TableSchema:
    """The columns of several tables as `table.column`, for an asset that holds them all."""
    return dg.TableSchema(
        columns=[
            dg.TableColumn(
                f"{name}.{column.name}", column.type, column.description, column.constraints, tags=dict(column.tags)
            )
            for name, table in tables.items()
            for column in table_schema(table).columns
        ]
    )


def _column(column: Column, table: Table) -> dg.TableColumn:
    return dg.TableColumn(
        name=column.name,
        type=column.kind,
        description=column.about,
        constraints=dg.TableColumnConstraints(
            nullable=not (column.required or column.key),
            unique=table.key == [column.name],
            other=_constraints(column, table),
        ),
        tags={"personal": ""} if column.personal else {},
    )


def _constraints(column: Column, table: Table) -> list[str]:
    said = {
        f"part of the key ({', '.join(table.key)})": column.key and len(table.key) > 1,
        f"one of {', '.join(column.codes)}": bool(column.codes),
        f"matches {column.pattern}": column.pattern is not None,
        f"at least {column.minimum}": column.minimum is not None,
        f"at most {column.maximum}": column.maximum is not None,
        f"at most {column.longest} characters": column.longest is not None and not column.codes,
        f"refers to {column.refers}": column.refers is not None,
    }
    return [words for words, holds in said.items() if holds]


def counts_table(title: str, rows: Mapping[str, Mapping[str, object]]) -> dg.MarkdownMetadataValue:
    """A table of counts, one line per entry of `rows`; missing cells stay empty."""
    import tabulate

    names = list(dict.fromkeys(name for cells in rows.values() for name in cells))
    lines = [[label, *(cells.get(name, "") for name in names)] for label, cells in rows.items()]
    return dg.MetadataValue.md(tabulate.tabulate(lines, headers=[title, *names], tablefmt="github"))


def bar_plot(title: str, counts: Mapping[str, float]) -> dg.MarkdownMetadataValue:
    """Counts as horizontal bars: a PNG of a few kilobytes inside the markdown, so that nothing else must be served."""
    if not counts:
        return dg.MetadataValue.md("-")
    # The object interface: pyplot keeps every figure of a process alive and picks a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=PLOT_INCHES, dpi=PLOT_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    labels, values = list(counts)[::-1], list(counts.values())[::-1]
    axes.bar_label(axes.barh(labels, values, color=BAR_COLOUR), fmt="{:,.0f}", padding=3, fontsize=7)
    axes.set_title(title, fontsize=8, loc="left")
    axes.tick_params(labelsize=7)
    axes.margins(x=0.15)
    axes.spines[["top", "right"]].set_visible(False)
    png = io.BytesIO()
    figure.savefig(png, format="png", metadata={"Software": None})
    return dg.MetadataValue.md(f"![{title}](data:image/png;base64,{base64.b64encode(png.getvalue()).decode()})")


def numbers(prefix: str, counts: Mapping[str, float]) -> dict[str, float]:
    """Counts as plain numbers under names of their own: what the UI plots over time."""
    return {f"{prefix}_{name}": value for name, value in counts.items()}


def sentences(lines: Sequence[str]) -> dg.MarkdownMetadataValue:
    return dg.MetadataValue.md("\n".join(f"- {line}" for line in lines) or "-")
