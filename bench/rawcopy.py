"""The yardstick: what any Storage SCP must at least do. ``python -m bench.rawcopy PORT DIRECTORY``.

Reads the byte stream from the sockets, writes the bytes of every object to a new file, answers. It knows only
as much of DICOM as that takes: a canned A-ASSOCIATE-AC, the headers of PDUs and PDVs, a canned C-STORE-RSP with
the Message ID patched in. No negotiation, no checks, no File Meta, no index, no limits: not a server.

Each worker process serves one connection at a time with blocking calls, which is the fastest way there is;
the others wait in the backlog.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import struct
import sys
from collections.abc import Sequence

_BUFFER = 256 * 1024 + 64 * 1024  # a whole PDU of the load generator and more: fewer calls
_MAX_PDU = 256 * 1024
_MESSAGE_ID = struct.pack("<HHI", 0, 0x0110, 2)
_RELEASE_RP = struct.pack(">BBII", 6, 0, 4, 0)


def _item(item_type: int, value: bytes) -> bytes:
    return struct.pack(">BBH", item_type, 0, len(value)) + value


def a_associate_ac(request: bytes) -> bytes:
    """Accepts the first presentation context of an A-ASSOCIATE-RQ with its first transfer syntax."""
    context_at = request.index(b"\x20\0", 74)
    syntax_at = request.index(b"\x40\0", context_at)
    syntax_end = syntax_at + 4 + int.from_bytes(request[syntax_at + 2 : syntax_at + 4], "big")
    items = (
        _item(0x10, b"1.2.840.10008.3.1.1.1")
        + _item(0x21, bytes((request[context_at + 4], 0, 0, 0)) + request[syntax_at:syntax_end])
        + _item(0x50, _item(0x51, struct.pack(">I", _MAX_PDU)) + _item(0x52, b"2.25.1"))
    )
    body = request[6:74] + items
    return struct.pack(">BBI", 2, 0, len(body)) + body


def c_store_rsp(context_id: int, message_id: bytes) -> bytes:
    """A Success response as P-DATA-TF, without the optional UIDs (PS3.7 section 9.3.1.2)."""
    rest = struct.pack(
        "<HHIHHHI2sHHIHHHIH",
        0,
        0x0100,
        2,
        0x8001,
        0,
        0x0120,
        2,
        message_id,
        0,
        0x0800,
        2,
        0x0101,
        0,
        0x0900,
        2,
        0,
    )
    command = struct.pack("<HHII", 0, 0, 4, len(rest)) + rest
    return struct.pack(">BBIIBB", 4, 0, len(command) + 6, len(command) + 2, context_id, 3) + command


class RawCopy:
    """Serves one connection after the other; the files get numbers for names."""

    def __init__(self, directory: str, *, sync: bool) -> None:
        self._directory, self._sync = directory, sync
        self._count = 0
        self._buffer = bytearray(_BUFFER)
        self._view = memoryview(self._buffer)

    def serve(self, connection: socket.socket) -> None:
        """Reads until the release, or the end of the connection; the object in progress is then left as it is."""
        buffer, view = self._buffer, self._view
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        receive, header = connection.recv_into, struct.Struct(">BxIIBB").unpack_from
        start = end = 0  # of what is in the buffer and not handled
        missing = 0  # bytes of the current fragment that have not arrived
        flags = context_id = 0
        message_id = b"\0\0"
        file = -1
        while True:
            if start == end:
                start = end = 0
            elif end + 16 > _BUFFER or (not missing and end - start < 12):
                buffer[: end - start] = view[start:end]
                start, end = 0, end - start
            count = receive(view[end:])
            if not count:
                break
            end += count
            pieces: list[memoryview] = []  # of the data set, to be written with one call
            while True:
                if not missing:
                    if end - start < 12 and not (end - start >= 6 and buffer[start] != 4):
                        break
                    if buffer[start] != 4:
                        length = 6 + int.from_bytes(buffer[start + 2 : start + 6], "big")
                        if end - start < length:
                            break
                        if buffer[start] == 5:
                            connection.sendall(_RELEASE_RP)
                            return
                        if buffer[start] != 1:
                            return
                        connection.sendall(a_associate_ac(bytes(buffer[start : start + length])))
                        start += length
                        continue
                    _, pdu_length, pdv_length, context_id, flags = header(buffer, start)
                    if pdu_length != pdv_length + 4:
                        return  # the load generator sends one PDV per PDU
                    if flags & 1 and end - start < 6 + pdu_length:
                        break  # a command set is small: taken as a whole
                    missing = pdv_length - 2
                    start += 12
                take = min(missing, end - start)
                if flags & 1:
                    at = buffer.index(_MESSAGE_ID, start) + 8
                    message_id = bytes(buffer[at : at + 2])
                elif take:
                    pieces.append(view[start : start + take])
                start += take
                missing -= take
                if missing:
                    break
                if flags == 2:
                    file = self._write(file, pieces)
                    if self._sync:
                        os.fdatasync(file)
                    os.close(file)
                    file, pieces = -1, []
                    connection.sendall(c_store_rsp(context_id, message_id))
            if pieces:
                file = self._write(file, pieces)
        if file >= 0:
            os.close(file)

    def _write(self, file: int, pieces: list[memoryview]) -> int:
        if file < 0:
            self._count += 1
            name = f"{self._directory}/{os.getpid()}-{self._count}"
            file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        if os.writev(file, pieces) != sum(map(len, pieces)):
            raise OSError(f"short write to {self._directory}: the disk is full")
        return file


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: serves until it is terminated."""
    parser = argparse.ArgumentParser(prog="python -m bench.rawcopy", description=__doc__.partition("\n\n")[0])
    parser.add_argument("port", type=int)
    parser.add_argument("directory")
    parser.add_argument("--sync", action="store_true", help="fdatasync every file before the answer")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, metavar="N", help="one per CPU")
    options = parser.parse_args(arguments)
    listener = socket.create_server(("127.0.0.1", options.port), backlog=1024)
    children: list[int] = []
    for _ in range(options.processes - 1):
        if not (child := os.fork()):
            children = []
            break
        children.append(child)

    def stop(*_: object) -> None:
        for child in children:
            os.kill(child, signal.SIGTERM)
        os._exit(0)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    raw_copy = RawCopy(options.directory, sync=options.sync)
    while True:
        connection, _ = listener.accept()
        with connection:
            try:
                raw_copy.serve(connection)
            except ConnectionError:
                pass
            except OSError as error:
                print(f"{parser.prog}: {error}", file=sys.stderr)
                return 1


if __name__ == "__main__":
    sys.exit(main())
