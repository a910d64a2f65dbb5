"""Whose data a system gives: asked before anything of it is read, and compared with whose it gave the first time.
What a provider asks to find that out is its own; the answer is kept with the integration."""

from __future__ import annotations

from dataclasses import dataclass, field

from sis_pipeline.connect.contract import Answer, Request, Source
from sis_pipeline.defs.resources import Connection, ProviderResource, Roster
from sis_pipeline.store.integrations import Integration


@dataclass
class _Heard:
    """A source that keeps what it was answered."""

    source: Source
    answers: list[tuple[Request, Answer]] = field(default_factory=list)

    def send(self, request: Request) -> Answer:
        answer = self.source.send(request)
        self.answers.append((request, answer))
        return answer


@dataclass
class _Again:
    """A source that gives what was heard already, each answer once: whoever asks a second time wants a new one."""

    source: Source
    answers: list[tuple[Request, Answer]]

    def send(self, request: Request) -> Answer:
        for place, (asked, answer) in enumerate(self.answers):
            if asked == request:
                del self.answers[place]
                return answer
        return self.source.send(request)


def recognised(roster: Roster, connection: Connection) -> Source:
    """The connection's source, for planning, once it is known to be the right district's; see Integrations.recognise.

    Planning asks for some of the same things and gets those answers without another call.
    """
    heard = _Heard(connection.source)
    roster.integrations.recognise(connection.integration.key, connection.provider.whose(heard))
    return _Again(connection.source, heard.answers)


def districts_behind(resource: ProviderResource, integration: Integration) -> frozenset[str]:
    """The districts whose data the integration's credentials reach now, whatever they reached before."""
    with resource.connect(integration) as connection:
        return connection.provider.whose(connection.source)
