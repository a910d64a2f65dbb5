"""A full reading with the changes of later readings laid over it, as one set of raw pages that any provider standardises.
Which readings belong together is the store's to know; what a record means, or a tombstone, is the provider's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from sis_pipeline.providers.base import Provider, RawSnapshot, Record
from sis_pipeline.providers.decoding import behind, identity_of
from sis_pipeline.providers.deltas import changes_by

About = Mapping[str, str]


class Layered:
    """What a source holds as far as it has told: per record id the newest of the layers, the oldest of which is whole.

    A resource that a later layer read whole counts from there on. A record without an id is never replaced. Pages none
    of whose records was replaced come as they were sent; the others, and the changes, are written by `provider.encode`.
    """

    def __init__(self, provider: Provider, layers: Sequence[RawSnapshot]) -> None:
        """`layers`: the oldest first, at least one."""
        self._provider = provider
        self._layers = list(layers)
        self.school_year = layers[-1].school_year

    @property
    def resources(self) -> list[str]:
        return list(dict.fromkeys(name for layer in self._layers for name in layer.resources))

    def bodies(self, resource: str) -> Iterator[tuple[About, bytes]]:
        """(about, body) of the pages of a resource, older records first."""
        whole, changes = self._standing(resource)
        path: tuple[str, ...] = ()
        newer: set[str] = set()
        laid: list[tuple[About, list[Record]]] = []
        for layer in reversed(changes):
            about, records = self._records(layer, resource)
            path = changes_by(about) or path
            laid.append((about, [one for one in records if identity_of(one, path) not in newer]))
            newer |= {key for one in records if (key := identity_of(one, path)) is not None}
        if whole is not None:
            for about, body in whole.bodies(resource):
                yield about, self._without(resource, body, newer, path) if newer else body
        for about, records in reversed(laid):
            yield about, self._provider.encode(resource, records)

    def _standing(self, resource: str) -> tuple[RawSnapshot | None, list[RawSnapshot]]:
        """The newest layer that has a resource whole, and those after it that have changes of it."""
        changes: list[RawSnapshot] = []
        for layer in reversed(self._layers):
            first = next(iter(layer.bodies(resource)), None)
            if first is None:
                continue
            if changes_by(first[0]) is None:
                return layer, changes[::-1]
            changes.append(layer)
        return None, changes[::-1]

    def _records(self, layer: RawSnapshot, resource: str) -> tuple[About, list[Record]]:
        facts: dict[str, str] = {}
        records: list[Record] = []
        for about, body in layer.bodies(resource):
            facts.update(about)
            records.extend(behind(records, self._provider.decode(resource, body)))
        return facts, records

    def _without(self, resource: str, body: bytes, replaced: set[str], path: Sequence[str]) -> bytes:
        records = self._provider.decode(resource, body)
        left = [one for one in records if identity_of(one, path) not in replaced]
        return body if len(left) == len(records) else self._provider.encode(resource, left)
