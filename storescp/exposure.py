"""Files with secrets that everybody on the machine may read: what ssh says of its keys.

What belongs here: which files of the settings have any. Blocking; no Twisted. A group may read them: it may be the
server's.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from storescp.config import Config
from storescp.option_values import shown
from storescp.settings import Settings, Source

#: Bytes of a key that are looked at: what is in PEM says so there.
_HEAD = 4096


def exposed(config: Config, settings: Settings) -> list[str]:
    """A line for each of them, with the place in the *settings*, of which *config* is made."""
    return [
        settings.placed(f"--{name}: expected a file that others cannot read, got {os.fspath(file)!r}")
        for name, file in _secrets(config, settings)
        if _others_read(file)
    ]


def _secrets(config: Config, settings: Settings) -> Iterator[tuple[str, str | os.PathLike[str]]]:
    """Option and file."""
    access, audit = config.access, config.logs.audit
    if config.tls is not None:
        yield "tls-key", config.tls.key
    if audit is not None and (key := audit.key or audit.certificate) is not None:
        yield "audit-key", key
    for text in access.auth:
        kind, _, arguments = text.partition(":")
        if kind == "file":
            yield "auth", arguments
    if access.jwt_key is not None and not _is_public(access.jwt_key):
        yield "jwt-key", access.jwt_key
    for option in settings.options:
        setting = settings.setting(option)
        if setting.source is Source.FILE and shown(option, setting.texts) != setting.texts:
            yield option.name, settings.file


def _others_read(file: str | os.PathLike[str]) -> bool:
    try:
        return bool(os.stat(file).st_mode & stat.S_IROTH)
    except OSError:  # whoever needs it says so
        return False


def _is_public(key: os.PathLike[str]) -> bool:
    """Whether tokens are checked by a public key: anything else would be a secret."""
    try:
        with open(key, "rb") as file:
            return b"-----BEGIN" in file.read(_HEAD)
    except OSError:
        return True
