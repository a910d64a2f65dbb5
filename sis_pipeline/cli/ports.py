"""Whether a port can be listened on, asked before something starts that would fail less clearly.
Nothing is kept open here: who asked opens the port itself."""

from __future__ import annotations

import socket

from sis_pipeline.cli.output import RefusalError


def check_port(host: str, port: int) -> None:
    """Raises RefusalError where the port can't be listened on; 0 always can."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            raise RefusalError(
                f"{host}:{port} can't be listened on; something else may.", "Choose another with --port."
            ) from None
