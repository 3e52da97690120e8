"""Ctrl-C while a program starts: importing this module has it end the process at once, as shells expect, which call
that 130 and end their loops. Otherwise it would be a traceback, or would be lost: Twisted catches it where it looks for
plugins.

What belongs here: the time until somebody handles the signal, or has something to put in order.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType


def end_at_once() -> None:
    """Nothing is under way that Ctrl-C could disturb. Whoever ignores it goes on ignoring it."""
    _replace(signal.default_int_handler, signal.SIG_DFL)


def raise_again() -> None:
    """From now on Ctrl-C is a KeyboardInterrupt, as usual in Python, which says nothing if nobody catches it."""
    _replace(signal.SIG_DFL, signal.default_int_handler)
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = excepthook


def excepthook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """What Python does with an exception that nobody has caught: a traceback, unless it is Ctrl-C.

    After that it ends by the very signal.
    """
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)


def _replace(handler: object, other: Callable[[int, FrameType | None], object] | signal.Handlers) -> None:
    # Python lets no other thread do that, and interrupts none.
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is handler:
        signal.signal(signal.SIGINT, other)


end_at_once()
