"""The settings of the page, the metrics and the probes that are served by HTTP."""

from __future__ import annotations

import re
from typing import Final

from storescp.option_values import Option, endpoints, number, unexpected
from storescp.tls_settings import is_secure


def _endpoint(texts: tuple[str, ...]) -> str | None:
    """A Twisted endpoint, a port of the loopback interface, or none."""
    if texts == ("none",):
        return None
    if re.fullmatch(r"[0-9]+", texts[0]):
        port = number(int, "a port", 1, 65535)(texts)
        return f"tcp:{port}:interface=127.0.0.1"
    if is_secure(texts[0]):
        raise unexpected("an endpoint of Twisted's own", texts[0])
    return endpoints(texts)[0]


HTTP: Final = Option(
    "http",
    "ENDPOINT",
    "none",
    "serve metrics, probes and a page by HTTP: a port of 127.0.0.1, or a Twisted endpoint; or none",
    _endpoint,
)

WEB_OPTIONS: Final[tuple[Option[object], ...]] = (HTTP,)
