"""Associations of pynetdicom's as a requester: what it answers with a message is for who waits for it."""

from __future__ import annotations

import threading
from typing import Any

from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider


def associate(entity: AE, port: int, **options: Any) -> Association:
    """AE.associate() with a server at *port* of 127.0.0.1.

    Its reactor thread looks for requests of the peer. Before it has noticed that it is to pause for who waits for a
    response, it takes one that comes fast, and loses it. Here it leaves responses alone.
    """
    association: Association = entity.associate("127.0.0.1", port, **options)
    association.__class__ = _Association
    dimse = association.dimse
    take = dimse.get_msg

    def get_msg(block: bool = False) -> object:
        return take(block) if block or _is_request(dimse) else (None, None)

    vars(dimse)["get_msg"] = get_msg
    return association


class _Association(Association):
    """One that waits for its reactor thread's pause no longer than that takes.

    An N-EVENT-REPORT is served by a thread of its own, which says at its end that the reactor goes on. When that has
    paused just before, whoever paused it waits for ever. Here only the reactor thread, the association itself, says so.
    """

    @property
    def _is_paused(self) -> bool:
        return bool(vars(self)["_is_paused"])

    @_is_paused.setter
    def _is_paused(self, value: bool) -> None:
        if value or threading.current_thread() is self:
            vars(self)["_is_paused"] = value


def _is_request(dimse: DIMSEServiceProvider) -> bool:
    """Whether the next message is one: not a response, nor nothing, nor the end of the association."""
    _, message = dimse.peek_msg()
    return message is not None and getattr(message, "MessageIDBeingRespondedTo", None) is None
