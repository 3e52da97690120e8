"""What can be judged of a server's settings before it starts, beyond what they say: the files and plugins they name."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator

from twisted.internet import reactor
from twisted.internet.interfaces import IReactorFromThreads

from storescp.audit_settings import Transport
from storescp.config import Config, ConfigError
from storescp.receiver import authenticator
from storescp.service import CannotStart, endpoint_of
from storescp.worker import Aside


def mistakes_of(config: Config, warnings: list[str]) -> Iterator[str]:
    """What would keep the server from starting, a line each; what it would warn of goes into *warnings*."""
    for text in config.listen:
        try:
            endpoint_of(text, reactor)
        except CannotStart as error:
            yield str(error)
    if config.http is not None:
        try:
            endpoint_of(config.http, reactor, "--http")
        except CannotStart as error:
            yield str(error)
        if importlib.util.find_spec("prometheus_client") is None:
            yield "http: expected the packages that pip install 'storescp[web]' brings, got none"
    try:
        authenticator(config, Aside(IReactorFromThreads(reactor)))
    except ConfigError as error:
        yield str(error)
    if config.tls is not None:
        try:
            from storescp.credentials import BadCredentials
            from storescp.tls_context import TLS
        except ImportError as error:
            yield f"tls-certificate: expected the packages that pip install 'storescp[tls]' brings, got: {error}"
        else:
            try:
                warnings += TLS(config.tls).load()
            except BadCredentials as error:
                yield str(error)
    if config.logs.audit is not None and config.logs.audit.transport is Transport.TLS:
        try:
            from storescp.syslog_tls import Client

            Client(config.logs.audit)
        except ImportError as error:
            yield f"audit: expected the packages that pip install 'storescp[tls]' brings, got: {error}"
        except ValueError as error:
            yield str(error)
    place = os.path.abspath(config.storage_dir)
    while not os.path.lexists(place):
        place = os.path.dirname(place)
    if not os.path.isdir(place):
        yield f"storage-dir: expected a directory, got {str(config.storage_dir)!r:.200}, where {place!r:.200} is none"
    elif not os.access(place, os.W_OK | os.X_OK):
        warnings.append(f"storage-dir: {place!r:.200} cannot be written by the user who asks")
    if config.index_db is not None and os.path.isdir(config.index_db):
        yield f"index-db: expected the path of a SQLite database, got a directory: {config.index_db!r:.200}"
