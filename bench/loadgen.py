"""A C-STORE load generator: ``python -m bench.loadgen HOST PORT --associations 8 --objects 500 --size 512K``.

Sends objects over any number of associations at once and prints one JSON object: rates, statuses, response
times. It must cost less than any server it measures: objects are encoded in advance and only patched
(bench.objects), one loop of edge-triggered epoll serves all associations of a process, and a response is
recognised by its bytes instead of being decoded. One C-STORE at a time is outstanding on an association, as
almost every sender has it, unless a window is asked for and granted.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import errno
import functools
import json
import multiprocessing
import os
import resource
import secrets
import select
import socket
import ssl
import struct
import sys
import time
from collections.abc import Callable, Sequence

from bench.objects import (
    CT_IMAGE_STORAGE,
    EXPLICIT_VR_LITTLE_ENDIAN,
    LARGEST_PDU,
    PRESENTATION_CONTEXT_ID,
    SMALLEST_SIZE,
    ObjectStream,
    object_template,
)
from bench.outcome import Outcome

_IMPLEMENTATION_CLASS_UID = "2.25.190238012345678901234567890123456789"
_RELEASE_RQ = struct.pack(">BBII", 5, 0, 4, 0)
_STATUS = struct.pack("<HHI", 0, 0x0900, 2)  # tag and length in Implicit VR Little Endian
_MESSAGE_ID_RESPONDED = struct.pack("<HHI", 0, 0x0120, 2)
_PIECES_PER_CALL = 64  # far below IOV_MAX
_TLS_PORTION = 16 * 16 * 1024  # what is encrypted at once: so many of the longest records there are
_QUIET = 0.025  # seconds without any event after which we stop waiting for an A-ASSOCIATE-AC
_INTEREST = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What to send. ``size`` in bytes of the data set, ``objects`` per association.

    With ``association_per_object`` every object has an association of its own; ``associations`` is then how
    many of these run at the same time, and ``objects`` how many follow each other in each place. With a ``size``
    of 0 as well, they are released as soon as they are accepted: each counts as one object without any bytes.
    ``stall`` is the number of seconds without any progress after which the run is given up. With ``tls`` each
    connection begins with a handshake, for which any certificate will do. With a ``window`` above 1 so many C-STOREs
    are outstanding on an association, or as many as the server grants (PS3.7 section D.3.3.3).
    """

    host: str
    port: int
    associations: int = 1
    objects: int = 100
    size: int = 512 * 1024
    association_per_object: bool = False
    processes: int = 1
    calling_ae_title: str = "LOADGEN"
    called_ae_title: str = "ANY-SCP"
    max_pdu: int = LARGEST_PDU
    run: str = ""
    tls: bool = False
    window: int = 1
    stall: float = 60.0


class _TLSSocket:
    """Looks like a socket that does not block.

    OpenSSL encrypts as much as there is in one call, and one call sends that: a record at a time, which is what
    ssl.SSLSocket can do, would cost the load generator half as much again.
    """

    def __init__(self, plain: socket.socket) -> None:
        self._plain = plain
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = _tls_context().wrap_bio(self._incoming, self._outgoing)
        self._established = False
        self._encrypted = memoryview(b"")  # what the kernel has not taken yet
        self._accepted = 0  # bytes that this is made of
        self.fileno = plain.fileno
        self.setsockopt = plain.setsockopt
        self.connect_ex = plain.connect_ex

    def sendmsg(self, pieces: Sequence[bytes | memoryview]) -> int:
        """So many bytes of *pieces* are on their way; after a BlockingIOError the same are to be given again."""
        self._shake_hands()
        if not self._encrypted:
            window, room = [], _TLS_PORTION
            for piece in pieces:
                window.append(memoryview(piece)[:room])
                room -= len(window[-1])
                if not room:
                    break
            self._accepted = self._tls.write(window[0] if len(window) == 1 else b"".join(window))
            self._encrypted = memoryview(self._outgoing.read())
        while self._encrypted:
            self._encrypted = self._encrypted[self._plain.send(self._encrypted) :]
        return self._accepted

    def recv(self, size: int) -> bytes:
        """What has been decrypted; empty at the end."""
        self._shake_hands()
        while True:
            try:
                return self._tls.read(size)
            except ssl.SSLWantReadError:
                self._read()
            except ssl.SSLZeroReturnError:
                return b""

    def close(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._tls.unwrap()  # says farewell, and waits for none
        with contextlib.suppress(OSError):
            self._plain.send(self._outgoing.read())
        self._plain.close()

    def _shake_hands(self) -> None:
        while not self._established:
            try:
                self._tls.do_handshake()
                self._established = True
            except ssl.SSLWantReadError:
                self._read()
            finally:
                if self._outgoing.pending:
                    self._plain.send(self._outgoing.read())

    def _read(self) -> None:
        if data := self._plain.recv(65536):
            self._incoming.write(data)
        else:
            self._incoming.write_eof()


@functools.cache
def _tls_context() -> ssl.SSLContext:
    """The same version and cipher with every server, one that every profile of PS3.15 has."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE-RSA-AES128-GCM-SHA256")
    return context


def _item(item_type: int, value: bytes) -> bytes:
    return struct.pack(">BBH", item_type, 0, len(value)) + value


def a_associate_rq(
    called_ae_title: str, calling_ae_title: str, sop_class_uid: str, max_pdu: int, window: int = 1
) -> bytes:
    """An A-ASSOCIATE-RQ with one presentation context in Explicit VR Little Endian (PS3.8 section 9.3.2).

    A ``window`` of more than one operation is asked for (PS3.7 section D.3.3.3).
    """
    context = (
        struct.pack(">BBBB", PRESENTATION_CONTEXT_ID, 0, 0, 0)
        + _item(0x30, sop_class_uid.encode())
        + _item(0x40, EXPLICIT_VR_LITTLE_ENDIAN.encode())
    )
    user_information = (
        _item(0x51, struct.pack(">I", max_pdu))
        + _item(0x52, _IMPLEMENTATION_CLASS_UID.encode())
        + _item(0x55, b"LOADGEN_1")
    )
    if window > 1:
        user_information += _item(0x53, struct.pack(">HH", window, 1))
    body = struct.pack(
        ">HH16s16s32x", 1, 0, called_ae_title.ljust(16).encode(), calling_ae_title.ljust(16).encode()
    )
    body += _item(0x10, b"1.2.840.10008.3.1.1.1") + _item(0x20, context) + _item(0x50, user_information)
    return struct.pack(">BBI", 1, 0, len(body)) + body


def accepted(pdu: bytes) -> tuple[int, int]:
    """What an A-ASSOCIATE-AC announces: the Maximum Length (0: none), and the operations that we may have outstanding.

    ValueError if it refused our context.
    """
    at, max_pdu, window, result = 74, 0, 1, -1
    while at + 4 <= len(pdu):
        item_type, length = pdu[at], int.from_bytes(pdu[at + 2 : at + 4], "big")
        if item_type == 0x21:
            result = pdu[at + 6]
        elif item_type == 0x51:
            max_pdu = int.from_bytes(pdu[at + 4 : at + 8], "big")
        elif item_type == 0x53:
            window = int.from_bytes(pdu[at + 4 : at + 6], "big") or 0xFFFF
        at += 4 if item_type == 0x50 else 4 + length  # walk into the user information
    if result != 0:
        raise ValueError(f"presentation context refused, result {result}")
    return max_pdu, window


def command_fragment(pdu: bytes) -> tuple[bytes, bool]:
    """What a P-DATA-TF PDU holds of a command set, and whether that ends with it; ValueError for another PDU."""
    if pdu[0] != 4:
        raise ValueError(f"PDU of type {pdu[0]} instead of P-DATA-TF")
    at = 10 + int.from_bytes(pdu[6:10], "big")
    fragment, last = pdu[12:at], bool(pdu[11] & 2)
    while at + 6 <= len(pdu):  # more PDVs, which is rare
        end = at + 4 + int.from_bytes(pdu[at : at + 4], "big")
        fragment, last, at = fragment + pdu[at + 6 : end], bool(pdu[at + 5] & 2), end
    return fragment, last


def response_status(command: bytes) -> tuple[int, int]:
    """The Message ID that a response responds to, and its Status; ValueError if it has none.

    The elements are found by their tag and length, in ascending order: the bytes of a Message ID can look like
    the beginning of another tag, so the search goes on behind them.
    """
    at = command.find(_MESSAGE_ID_RESPONDED) + 8
    if at < 8:
        raise ValueError("response to no message")
    message_id = int.from_bytes(command[at : at + 2], "little")
    at = command.find(_STATUS, at + 2) + 8
    if at < 8:
        raise ValueError("response without a status")
    return message_id, int.from_bytes(command[at : at + 2], "little")


class Association:
    """One association after the other at one place of the run: connect, send, release, perhaps again.

    Owned by a Generator, which calls ``open()`` once and then ``ready()`` for every epoll event.
    """

    def __init__(self, generator: Generator, number: int) -> None:
        self._generator = generator
        self._stream = ObjectStream(generator.load.run, number)
        self._left = generator.load.objects
        self._left_here = 0  # not answered yet, of which this many are not sent yet:
        self._unsent = 0
        self._window = 1
        self._outstanding: dict[int, float] = {}  # since when, by message ID
        self._socket: socket.socket | _TLSSocket | None = None
        self._received = b""
        self._command = b""
        self._pieces: Sequence[bytes | memoryview] = ()
        self._piece = self._offset = 0  # of what is not sent yet
        self._message_id = 0
        self._since = 0.0
        self._on_pdu: Callable[[bytes], None] = self._on_association_answer

    def open(self) -> None:
        """Connects and sends the A-ASSOCIATE-RQ as soon as the connection stands."""
        load = self._generator.load
        self._since = time.monotonic()
        self._left_here = self._unsent = 1 if load.association_per_object else self._left
        self._outstanding.clear()
        if load.association_per_object:
            self._generator.clock_starts(self._since)
        self._received = self._command = b""
        self._on_pdu = self._on_association_answer
        plain = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        plain.setblocking(False)
        sock = _TLSSocket(plain) if load.tls else plain
        self._socket = sock
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._pieces, self._piece, self._offset = (self._generator.associate_rq,), 0, 0
        self._generator.watch(sock, self)
        if (code := sock.connect_ex((load.host, load.port))) not in (0, errno.EINPROGRESS):
            self.fail(os.strerror(code))

    def ready(self, events: int) -> None:
        """Sends and receives what can be; a failure ends the association and is counted."""
        try:
            tls = self._generator.load.tls  # which may have to read before it can write
            if self._pieces and (tls or events & ~select.EPOLLIN):
                self._flush()
                if self._window > 1 and self._outstanding:
                    self._fill()
            if events & ~select.EPOLLOUT:
                self._receive()
                while tls and self._socket is not None and self._receive():
                    pass  # a record at a time
            if events & select.EPOLLRDHUP and self._socket is not None:
                self._receive()  # an end of the stream right behind other bytes has no event of its own
        except (OSError, ValueError) as error:
            self.fail(error.strerror if isinstance(error, OSError) and error.strerror else str(error))

    def fail(self, why: str) -> None:
        """Gives up this association; the objects that it still had are not sent by another one."""
        self._generator.outcome.failures[why] += 1
        self._left -= self._left_here
        self._close()

    def _send(self, *pieces: bytes | memoryview) -> None:
        self._pieces, self._piece, self._offset = pieces, 0, 0
        self._flush()

    def _flush(self) -> None:
        sock = self._socket
        assert sock is not None
        pieces = self._pieces
        try:
            while self._piece < len(pieces):
                window = list(pieces[self._piece : self._piece + _PIECES_PER_CALL])
                if self._offset:
                    window[0] = memoryview(window[0])[self._offset :]
                sent = sock.sendmsg(window)
                for piece in window:
                    if sent < len(piece):
                        self._offset += sent
                        break
                    sent -= len(piece)
                    self._piece += 1
                    self._offset = 0
        except BlockingIOError:
            return
        self._pieces = ()

    def _receive(self) -> bool:
        """Whether there was something."""
        sock = self._socket
        if sock is None:
            return False
        try:
            data = sock.recv(65536)
        except BlockingIOError:
            return False
        if not data:
            raise ValueError("connection closed by the peer")
        if self._received:
            data = self._received + data
        while len(data) >= 6 and (end := 6 + int.from_bytes(data[2:6], "big")) <= len(data):
            pdu, data = (data, b"") if end == len(data) else (data[:end], data[end:])
            if pdu[0] == 7:
                raise ValueError(f"A-ABORT, source {pdu[8]}, reason {pdu[9]}")
            self._on_pdu(pdu)
        self._received = data if self._socket is sock else b""
        return True

    def _on_association_answer(self, pdu: bytes) -> None:
        if pdu[0] == 3:
            raise ValueError(f"A-ASSOCIATE-RJ, result {pdu[7]}, source {pdu[8]}, reason {pdu[9]}")
        if pdu[0] != 2:
            raise ValueError(f"PDU of type {pdu[0]} instead of A-ASSOCIATE-AC")
        generator = self._generator
        max_pdu, window = accepted(pdu)
        generator.outcome.association_times.append(time.monotonic() - self._since)
        generator.outcome.max_pdu = max_pdu
        if not generator.load.size:
            self._on_pdu = self._on_release_rp
            self._send(_RELEASE_RQ)
            return
        limit = min(max_pdu or generator.load.max_pdu, generator.load.max_pdu)
        template = object_template(generator.load.size, limit)
        self._stream.use(template)
        self._on_pdu = self._on_response
        self._window = min(window, generator.load.window)
        generator.accepted(self)

    def start(self) -> None:
        """Sends the first object; the association must have been accepted, and may have ended since."""
        if self._socket is None:
            return
        now = time.monotonic()
        self._generator.clock_starts(now)
        try:
            self._next(now)
            self._fill()
        except OSError as error:
            self.fail(error.strerror or str(error))

    def _next(self, now: float) -> None:
        self._message_id = message_id = self._message_id % 0xFFFF + 1
        self._outstanding[message_id] = now
        self._unsent -= 1
        self._stream.advance(message_id)
        self._pieces, self._piece, self._offset = self._stream.pieces, 0, 0
        self._flush()

    def _fill(self) -> None:
        """Sends on while the window allows it, and the network takes it."""
        while self._unsent and not self._pieces and len(self._outstanding) < self._window:
            self._next(time.monotonic())

    def _on_response(self, pdu: bytes) -> None:
        command, last = command_fragment(pdu)
        if self._command or not last:
            self._command += command
            if not last:
                return
            command, self._command = self._command, b""
        message_id, status = response_status(command)
        since = self._outstanding.pop(message_id, None)
        if since is None:
            raise ValueError("response to another message")
        if self._pieces and message_id == self._message_id:
            raise ValueError("response before the end of the object")
        now = time.monotonic()
        outcome = self._generator.outcome
        outcome.response_times.append(now - since)
        outcome.statuses[status] += 1
        self._left -= 1
        self._left_here -= 1
        if self._left_here:
            if self._unsent and not self._pieces:
                self._next(now)
        else:
            outcome.finished = now
            self._on_pdu = self._on_release_rp
            self._send(_RELEASE_RQ)

    def _on_release_rp(self, pdu: bytes) -> None:
        if pdu[0] != 6:
            raise ValueError(f"PDU of type {pdu[0]} instead of A-RELEASE-RP")
        if not self._generator.load.size:
            self._generator.outcome.response_times.append(time.monotonic() - self._since)
            self._generator.outcome.statuses[0] += 1
            self._left -= 1
        self._close()

    def _close(self) -> None:
        assert self._socket is not None
        self._generator.forget(self._socket)
        self._socket.close()
        self._socket = None
        self._pieces = ()
        if self._generator.load.association_per_object:
            self._generator.outcome.finished = time.monotonic()
        if self._left > 0:
            self._generator.again(self)


class Generator:
    """Runs a share of a Load, the associations with the given numbers, in this process."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.outcome = Outcome()
        self._epoll = select.epoll()
        self._associations: dict[int, Association] = {}
        self._to_open: collections.deque[Association] = collections.deque()
        # Accepted ones that wait for the others, until all of them start.
        self._held: list[Association] | None = None if load.association_per_object else []
        self._open_next = True
        sop_class_uid = object_template(load.size, 0).sop_class_uid if load.size else CT_IMAGE_STORAGE
        self.associate_rq = a_associate_rq(
            load.called_ae_title, load.calling_ae_title, sop_class_uid, 64 * 1024, load.window
        )

    def run(self, numbers: Sequence[int]) -> Outcome:
        """Sends everything; returns when all associations have ended, or nothing moved for ``stall`` seconds."""
        cpu = time.process_time()
        self._to_open.extend(Association(self, number) for number in numbers)
        associations, poll, stall = self._associations, self._epoll.poll, self.load.stall
        while associations or self._to_open:
            while self._to_open and (self._open_next or self._held is None):
                self._open_next = False
                self._to_open.popleft().open()
            events = poll(stall if self._held is None else _QUIET)
            for descriptor, mask in events:
                if (found := associations.get(descriptor)) is not None:
                    found.ready(mask)
            if self._held is not None:
                self._begin(quiet=not events)
            elif not events:
                for association in list(associations.values()):
                    association.fail(f"no progress for {stall:g} s")
                break
        self._epoll.close()
        outcome = self.outcome
        outcome.object_bytes = object_template(self.load.size, 0).size if self.load.size else 0
        outcome.cpu_seconds = time.process_time() - cpu
        return outcome

    def _begin(self, quiet: bool) -> None:
        """Opens associations one after the other, as no server's backlog overflows then, and starts all at once.

        Nobody is waited for who is not accepted soon: some servers serve one association at a time.
        """
        assert self._held is not None
        if self._to_open:
            self._open_next = self._open_next or quiet
        elif quiet or len(self._held) == len(self._associations):
            held, self._held = self._held, None
            for association in held:
                association.start()

    def accepted(self, association: Association) -> None:
        """An association may send: now, or together with the others."""
        if self._held is None:
            association.start()
        else:
            self._held.append(association)
            self._open_next = True

    def clock_starts(self, now: float) -> None:
        self.outcome.started = min(self.outcome.started, now)

    def watch(self, sock: socket.socket | _TLSSocket, association: Association) -> None:
        self._associations[sock.fileno()] = association
        self._epoll.register(sock, _INTEREST)

    def again(self, association: Association) -> None:
        """Opens the association anew once the events at hand are done with: not now, it would recurse."""
        self._to_open.append(association)

    def forget(self, sock: socket.socket | _TLSSocket) -> None:
        self._open_next = True
        del self._associations[sock.fileno()]
        self._epoll.unregister(sock)


def _share(load: Load, numbers: Sequence[int]) -> Outcome:
    return Generator(load).run(numbers)


def run(load: Load) -> Outcome:
    """Sends ``load`` and waits for its end. Without ``load.run`` the UIDs differ from those of every other run."""
    if not load.run:
        load = dataclasses.replace(load, run=f"{secrets.randbelow(9 * 10**19) + 10**19}")
    processes = min(load.processes, load.associations)
    shares = [range(i, load.associations, processes) for i in range(processes)]
    if processes == 1:
        return _share(load, shares[0])
    outcome = Outcome()
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        for part in pool.map(functools.partial(_share, load), shares, chunksize=1):
            outcome.merge(part)
    return outcome


def byte_count(text: str) -> int:
    """Reads "8K", "512K", "64M", "1G" (powers of 1024) or a plain number of bytes."""
    factor = {"K": 1024, "M": 1024**2, "G": 1024**3}.get(text[-1:].upper(), 1)
    try:
        return int(text[:-1] if factor > 1 else text) * factor
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected a number of bytes such as 8K or 64M, got {text!r}"
        ) from None


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 1, got {text!r}")
    return int(text)


def raise_descriptor_limit() -> None:
    """Allows as many sockets as the system lets us have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; exit code 0 when every object was answered with Success, 1 when not, 2 for bad use."""
    parser = argparse.ArgumentParser(prog="python -m bench.loadgen", description=__doc__.partition("\n\n")[0])
    parser.add_argument("host")
    parser.add_argument("port", type=_positive)
    parser.add_argument("--associations", type=_positive, default=1, metavar="N", help="at the same time (1)")
    parser.add_argument("--objects", type=_positive, default=100, metavar="M", help="per association (100)")
    parser.add_argument(
        "--size", type=byte_count, default=512 * 1024, metavar="BYTES", help="of a data set (512K)"
    )
    parser.add_argument(
        "--association-per-object", action="store_true", help="one association for every object"
    )
    parser.add_argument("--processes", type=_positive, default=1, metavar="P", help="to share the work (1)")
    parser.add_argument("--called-ae-title", default="ANY-SCP", metavar="AE")
    parser.add_argument("--calling-ae-title", default="LOADGEN", metavar="AE")
    parser.add_argument(
        "--max-pdu", type=byte_count, default=LARGEST_PDU, metavar="BYTES", help="never longer PDUs (256K)"
    )
    parser.add_argument(
        "--window", type=_positive, default=1, metavar="N", help="C-STOREs outstanding per association (1)"
    )
    parser.add_argument("--tls", action="store_true", help="TLS 1.2, whatever the server's certificate")
    parser.add_argument("--run", default="", metavar="DIGITS", help="20 digits for the UIDs (random)")
    parser.add_argument("--stall", type=float, default=60.0, metavar="SECONDS", help="give up after (60)")
    load = Load(**vars(parser.parse_args(arguments)))
    if not (SMALLEST_SIZE <= load.size < 2**32 - 1 or (load.size == 0 and load.association_per_object)):
        parser.error(
            f"--size: expected from {SMALLEST_SIZE} bytes to 4 GiB (or 0 with --association-per-object),"
            f" got {load.size}"
        )
    raise_descriptor_limit()
    try:
        outcome = run(load)
    except (OSError, ValueError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    print(json.dumps(outcome.as_json(), indent=2))
    return 0 if outcome.ok else 1


if __name__ == "__main__":
    sys.exit(main())
