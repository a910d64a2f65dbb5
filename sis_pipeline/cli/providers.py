"""`sis providers`: which SIS plugins are installed, and which could not be loaded.
Finding and judging plugins is the registry's business."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from sis_pipeline.cli.output import AsJson, ExitCode, emit, table

if TYPE_CHECKING:
    from rich.console import Console

    from sis_pipeline.providers.base import Provider


NO_REQUESTS = "–"


def request_limit(provider: type[Provider]) -> int | None:
    """Requests a minute unless set otherwise; None where nothing is requested over HTTP."""
    from sis_pipeline.providers.base import HttpSettings

    return provider.requests_per_minute if issubclass(provider.Settings, HttpSettings) else None


def providers(*, as_json: AsJson = False) -> None:
    """List the installed providers, and those that failed to load with the reason."""
    from sis_pipeline.providers.registry import load_providers

    registry = load_providers()
    found = [
        {
            "name": name,
            "title": provider.title,
            "requests_per_minute": request_limit(provider),
            "settings": list(provider.Settings.model_fields),
            "module": f"{provider.__module__}:{provider.__qualname__}",
        }
        for name, provider in sorted(registry.providers.items())
    ]
    failures = [{"name": it.name, "entry_point": it.entry_point, "reason": it.reason} for it in registry.failures]

    def render(console: Console) -> None:
        rows = [(it["name"], it["title"], it["requests_per_minute"] or NO_REQUESTS, it["module"]) for it in found]
        console.print(table("Providers", ("name", "what", "requests/min", "from"), rows, right=("requests/min",)))
        if failures:
            lost = [(it["name"], it["entry_point"], it["reason"]) for it in failures]
            console.print(table("Not loaded", ("name", "entry point", "reason"), lost))

    emit(as_json, {"providers": found, "failures": failures}, render)
    if failures:
        raise typer.Exit(ExitCode.FAILED)
