"""Finding the installed providers by their entry points, and making one from an integration's settings.
A plugin that can't be used is listed with the reason and never stops the others; nothing here reads a database."""

from __future__ import annotations

import inspect
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from pydantic import ValidationError

from sis_pipeline.connect.errors import ConfigError
from sis_pipeline.providers.base import CONTRACT_VERSION, Provider, ProviderSettings

GROUP = "sis_pipeline.providers"
OURS = "sis-pipeline"
_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")


@dataclass(frozen=True, slots=True)
class Failure:
    """An entry point that can't be used, and why."""

    name: str
    entry_point: str
    reason: str


@dataclass(frozen=True, slots=True)
class Registry:
    """What is installed: the providers by name, and what could not be loaded."""

    providers: Mapping[str, type[Provider]] = field(default_factory=dict)
    failures: Sequence[Failure] = ()


class _Unusable(Exception):  # noqa: N818 it is a finding about a plugin, not an error of the program
    """Why a class can't serve as a provider."""


def provider_names() -> list[str]:
    """The names of the installed entry points, without importing anything."""
    return sorted({point.name for point in entry_points(group=GROUP)})


def load_providers() -> Registry:
    """Import every entry point of the group. Never raises for a plugin: what is wrong with one is among the failures."""
    by_name: dict[str, list[EntryPoint]] = defaultdict(list)
    for point in sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value)):
        by_name[point.name].append(point)
    providers: dict[str, type[Provider]] = {}
    failures: list[Failure] = []
    for name, points in by_name.items():
        chosen, refused = _without_clashes(name, points)
        failures += refused
        for point in chosen:
            try:
                providers[name] = _load(point)
            except _Unusable as problem:
                failures.append(Failure(name, point.value, str(problem)))
    return Registry(providers, tuple(failures))


def make(provider_name: str, settings: Mapping[str, Any], registry: Registry | None = None) -> Provider:
    """The provider of one integration. Raises ConfigError, in words and without repeating any value, for a provider
    that is not installed and for settings it does not accept."""
    registry = registry or load_providers()
    if provider_name not in registry.providers:
        raise ConfigError(_not_installed(provider_name, registry), code="config.no_provider")
    provider = registry.providers[provider_name]
    try:
        return provider(provider.Settings.model_validate(dict(settings)))
    except ValidationError as error:
        raise ConfigError(
            f"The settings for {provider_name} are not valid: {in_words(error)}.", code="config.setting"
        ) from None


def _not_installed(name: str, registry: Registry) -> str:
    reasons = [failure.reason for failure in registry.failures if failure.name == name]
    if reasons:
        return f"The provider {name} is installed but can't be used: {' '.join(reasons)}"
    return f"There is no provider {name}; installed are {', '.join(sorted(registry.providers)) or 'none'}."


def in_words(error: ValidationError) -> str:
    """One clause per problem: where, and what; pydantic's own text without the input."""
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    return "; ".join(f"{'.'.join(map(str, problem['loc'])) or 'settings'}: {problem['msg']}" for problem in problems)


def _without_clashes(name: str, points: Sequence[EntryPoint]) -> tuple[list[EntryPoint], list[Failure]]:
    """One entry point per name. Ours stays where a plugin takes its name; of two plugins neither is trusted."""
    if len(points) == 1:
        return list(points), []
    ours = [point for point in points if _distribution(point) == OURS]
    keep = ours[:1]
    others = ", ".join(_distribution(point) for point in points)
    reason = f"The name {name} is taken by more than one installed package ({others})."
    return keep, [Failure(name, point.value, reason) for point in points if point not in keep]


def _distribution(point: EntryPoint) -> str:
    return point.dist.name.lower().replace("_", "-") if point.dist is not None else "unknown"


def _load(point: EntryPoint) -> type[Provider]:
    """The class of an entry point. Raises _Unusable with the reason in words."""
    try:
        found = point.load()
    except (Exception, SystemExit) as error:  # noqa: BLE001 a plugin may fail in any way while it is imported
        raise _Unusable(f"Importing it failed: {_named(error)}") from None
    if not (inspect.isclass(found) and issubclass(found, Provider)):
        raise _Unusable(f"{point.value} is not a subclass of sis_pipeline.providers.base.Provider.")
    problem = next(_problems(point.name, found), None)
    if problem is not None:
        raise _Unusable(problem)
    return found


def _named(error: BaseException) -> str:
    """The error without anything it may quote, except what import errors say about modules and names."""
    said = f"({error})" if isinstance(error, ImportError | AttributeError) else ""
    return f"{type(error).__name__} {said}".strip() + "."


def _problems(name: str, provider: type[Provider]) -> Iterator[str]:
    """What keeps a class from being used, the most telling first."""
    version = getattr(provider, "contract_version", None)
    if version != CONTRACT_VERSION:
        yield f"It is written for version {version} of the plugin contract; this is version {CONTRACT_VERSION}."
    missing = [
        attribute
        for attribute in ("name", "title", "Settings", "requests_per_minute")
        if not hasattr(provider, attribute)
    ]
    missing += sorted(getattr(provider, "__abstractmethods__", ()))
    if missing:
        yield f"It lacks {', '.join(missing)}."
        return
    if provider.name != name:
        yield f"It calls itself {provider.name!r} but is installed as {name!r}."
    if not _NAME.fullmatch(name):
        yield "Its name must be lower-case letters, digits and underscores, a letter first, at most 63."
    if not (inspect.isclass(provider.Settings) and issubclass(provider.Settings, ProviderSettings)):
        yield "Its Settings are not a subclass of ProviderSettings."
    if type(provider.requests_per_minute) is not int or provider.requests_per_minute < 1:
        yield "Its requests_per_minute must be a whole number above 0."
