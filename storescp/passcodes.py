"""Whether a passcode is a user's, where finding that out blocks: a file has to be read, or the passcode to be hashed.

What belongs here: the two of Twisted's checkers that would do so on the reactor's thread, done such that a thread of
their own can. Blocking; no Twisted.
"""

from __future__ import annotations

import ctypes
import hmac
import os
import time

#: Seconds for which a file that was just written is read again each time: it may change twice within one tick of mtime.
_SETTLED = 2.0

#: Names of the library with crypt_r(3), and bytes for its struct crypt_data: 131,232 of glibc's, 32,768 of libxcrypt's.
_LIBRARIES = ("libcrypt.so.1", "libcrypt.so.2")
_CRYPT_DATA = 1 << 18


class PasscodeFile:
    """As FilePasswordDB of Twisted, which reads the whole file each time. This one reads it when it has changed."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._users: dict[bytes, bytes] = {}
        self._read: object = None

    def has(self, username: bytes, passcode: bytes) -> bool:
        """Whether *passcode* is that of the user, or the first of several. By one thread at a time. Raises OSError."""
        status = os.stat(self._path)
        version = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
        if version != self._read:
            with open(self._path, "rb") as file:
                lines = [line.rstrip().split(b":") for line in file]
            self._users = {
                name: word for name, word, *_ in reversed([line for line in lines if len(line) > 1])
            }
            self._read = version if abs(time.time() - status.st_mtime) > _SETTLED else None
        word = self._users.get(username)
        return word is not None and hmac.compare_digest(word, passcode)


class SystemPasscodes:
    """As UNIXChecker of Twisted, which hashes by the module crypt: that lets no other thread run meanwhile.

    Raises ImportError where Python has no spwd (from 3.13 on), OSError and AttributeError where there is no crypt_r(3).
    """

    def __init__(self) -> None:
        import pwd
        import spwd

        self._pwd, self._spwd = pwd, spwd
        self._crypt_r = _library().crypt_r
        self._crypt_r.restype = ctypes.c_char_p

    def has(self, username: bytes, passcode: bytes) -> bool:
        """Whether *passcode* is that of the user. Raises OSError."""
        name = username.decode()
        try:
            word = self._pwd.getpwnam(name).pw_passwd
            if word in ("x", "*"):
                word = self._spwd.getspnam(name).sp_pwdp
        except KeyError:
            return False
        if b"\0" in passcode:  # where it would end for C
            return False
        found = self._crypt_r(passcode, word.encode(), ctypes.create_string_buffer(_CRYPT_DATA))
        return found is not None and hmac.compare_digest(found, word.encode())


def _library() -> ctypes.CDLL:
    """Raises OSError."""
    for name in _LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError as error:
            trouble = error
    raise trouble
