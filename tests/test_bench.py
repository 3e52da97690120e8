"""The benchmark: what its load generator sends, how it reads answers, and how figures become a table."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import json
import os
import pathlib
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from xml.etree import ElementTree

import pydicom
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import UID
from twisted.trial.unittest import SynchronousTestCase

from bench import __main__ as bench_main
from bench import loadgen, procfs
from bench.check import Check
from bench.index import Rows, fill, measure_index, start_seconds
from bench.measure import DURABLE, USUAL, Comparison, Result, Sample, Settings, available, measure
from bench.objects import SMALLEST_SIZE, ObjectStream, object_template, series_length
from bench.outcome import summary
from bench.peers import PEERS, Peer, PeerFailed, Place, Server, free_port
from bench.rawcopy import c_store_rsp
from bench.report import as_json, goals, limits, table
from bench.storage import Storage, spread
from bench.sweeps import ASSOCIATE, Filled, measure_stored
from storescp.index import Index
from tests.server import data_set_of, temporary_directory
from tests.strategies import steady

RUN = "12345678901234567890"
OTHER_RUN = "98765432109876543210"
BY_NAME: Mapping[str, Peer] = {peer.name: peer for peer in PEERS}


@dataclasses.dataclass(frozen=True)
class SentObject:
    """What the PDUs of one C-STORE hold."""

    command: dict[int, bytes]
    data_set: bytes
    longest: int  # length field of a PDU


def taken_apart(stream: bytes) -> SentObject:
    """Reads the PDUs of one object as PS3.8 section 9.3.5 has them."""
    command, data_set, longest, ended = b"", b"", 0, []
    source = io.BytesIO(stream)
    while header := source.read(6):
        pdu_type, length = struct.unpack(">BxI", header)
        assert pdu_type == 4
        pdv = source.read(length)
        pdv_length, context_id, flags = struct.unpack(">IBB", pdv[:6])
        assert pdv_length == length - 4 and context_id == 1
        longest = max(longest, length)
        if flags & 1:
            command += pdv[6:]
        else:
            data_set += pdv[6:]
        ended.append(flags & 2)
    # The command set comes first, and both end with their last fragment.
    assert ended.count(2) == 2 and ended[-1] == 2
    elements, at = {}, 0
    while at < len(command):
        _, element, length = struct.unpack_from("<HHI", command, at)
        elements[element] = command[at + 8 : at + 8 + length]
        at += 8 + length
    return SentObject(elements, data_set, longest)


def sent_objects(
    size: int, max_pdu: int, count: int, association: int = 7, run: str = RUN
) -> Iterator[SentObject]:
    """The first objects of an association."""
    stream = ObjectStream(run, association)
    stream.use(object_template(size, max_pdu))
    for number in range(1, count + 1):
        stream.advance(number)
        yield taken_apart(b"".join(stream.pieces))


class ObjectsTests(SynchronousTestCase):
    """bench.objects against pydicom, and a reader of PDUs of its own."""

    def test_readable(self) -> None:
        """At any size and maximum PDU length the data set is whole, and its pixel data fits its image attributes."""
        for size in (SMALLEST_SIZE, 4 * 1024, 8 * 1024, 100_001, 512 * 1024, 5 * 1024**2):
            for max_pdu in (0, 4096, 16384, 16382, 131072, 2**32 - 1):
                (sent,) = sent_objects(size, max_pdu, 1)
                ds = pydicom.dcmread(io.BytesIO(sent.data_set), force=True)
                pixels = ds.Rows * ds.Columns * int(ds.get("NumberOfFrames", 1))
                self.assertEqual(len(ds.PixelData), 2 * pixels)
                self.assertTrue(0.98 * size <= len(sent.data_set) <= size, (size, len(sent.data_set)))
                self.assertEqual(len(sent.data_set), object_template(size, max_pdu).size)
                self.assertGreater(len(ds), 70 if size >= 4 * 1024 else 16)
                self.assertTrue(sent.longest <= (max_pdu or 256 * 1024), (max_pdu, sent.longest))
                self.assertEqual(sent.command[0x0002].rstrip(b"\0").decode(), ds.SOPClassUID)

    def test_command_set(self) -> None:
        """The C-STORE-RQ has the mandatory elements of PS3.7 table 9.3-1, the right group length and even values."""
        (sent,) = sent_objects(8 * 1024, 0, 1)
        self.assertEqual(list(sent.command), [0x0000, 0x0002, 0x0100, 0x0110, 0x0700, 0x0800, 0x1000])
        rest = sum(8 + len(value) for element, value in sent.command.items() if element)
        self.assertEqual(sent.command[0x0000], struct.pack("<I", rest))
        self.assertEqual(sent.command[0x0100], b"\1\0")
        self.assertEqual(sent.command[0x0110], b"\1\0")
        self.assertFalse(any(len(value) % 2 for value in sent.command.values()))

    def test_identifiers(self) -> None:
        """Every instance has a UID of its own, the same in command and data set; series follow in a study."""
        uids, series, studies = set(), [], set()
        first = series_length(7, 0)
        for number, sent in enumerate(sent_objects(SMALLEST_SIZE, 0, first + 50), 1):
            ds = pydicom.dcmread(io.BytesIO(sent.data_set), force=True)
            self.assertEqual(sent.command[0x1000].rstrip(b"\0").decode(), ds.SOPInstanceUID)
            self.assertTrue(UID(ds.SOPInstanceUID).is_valid and UID(ds.SeriesInstanceUID).is_valid)
            self.assertEqual(sent.command[0x0110], struct.pack("<H", number))
            self.assertEqual((ds.InstanceNumber, ds.PatientID), (number, "BENCH-000007"))
            self.assertEqual(ds.SeriesNumber, 1 if number <= first else 2)
            uids.add(ds.SOPInstanceUID)
            series.append(ds.SeriesInstanceUID)
            studies.add(ds.StudyInstanceUID)
        self.assertEqual(len(uids), first + 50)
        self.assertEqual((len(set(series)), series.count(series[0])), (2, first))
        self.assertEqual(len(studies), 1)

    def test_runs_and_associations_differ(self) -> None:
        """Other runs, and other associations of a run, have no UID in common."""
        found = [
            pydicom.dcmread(io.BytesIO(sent.data_set), force=True)
            for association, run in ((7, RUN), (8, RUN), (7, OTHER_RUN))
            for sent in sent_objects(SMALLEST_SIZE, 0, 2, association, run)
        ]
        self.assertEqual(len({ds.SOPInstanceUID for ds in found}), 6)
        self.assertEqual(len({ds.SeriesInstanceUID for ds in found}), 3)
        self.assertEqual(len({ds.StudyInstanceUID for ds in found}), 3)

    def test_template_changes(self) -> None:
        """A stream goes on with its numbers when the peer announces another maximum PDU length."""
        stream = ObjectStream(RUN, 7)
        stream.use(object_template(8 * 1024, 0))
        stream.advance(1)
        stream.use(object_template(8 * 1024, 4096))
        stream.advance(2)
        sent = taken_apart(b"".join(stream.pieces))
        ds = pydicom.dcmread(io.BytesIO(sent.data_set), force=True)
        self.assertEqual(ds.InstanceNumber, 2)
        self.assertEqual(ds.SOPInstanceUID, stream.sop_instance_uid())
        self.assertEqual(sent.data_set, stream.data_set())
        self.assertTrue(ds.SOPInstanceUID.startswith(ds.SeriesInstanceUID))

    def test_impossible(self) -> None:
        """An object smaller than a head, and PDUs smaller than one, are refused with a clear error."""
        self.assertRaises(ValueError, object_template, 100, 0)
        self.assertRaises(ValueError, object_template, 8 * 1024, 512)
        self.assertRaises(ValueError, ObjectStream, "12", 0)

    def test_memory(self) -> None:
        """An object of 1 GiB is sent from buffers of hardly more than 1 MiB."""
        template = object_template(1024**3, 16384)
        buffers = {id(piece.obj): len(memoryview(piece.obj)) for piece in template.rest}
        self.assertLess(sum(buffers.values()), 2 * 1024**2)
        self.assertGreater(sum(map(len, template.rest)), 0.99 * 1024**3)


def responses(message_id: int) -> Iterator[tuple[bytes, int]]:
    """C-STORE-RSP command sets and their status: the short one of the raw copy, and one with everything optional."""
    yield c_store_rsp(1, struct.pack("<H", message_id))[12:], 0
    elements = [
        (0x0002, b"1.2.840.10008.5.1.4.1.1.2\0"),
        (0x0100, b"\x01\x80"),
        (0x0120, struct.pack("<H", message_id)),
        (0x0800, b"\x01\x01"),
        (0x0900, b"\x00\xa7"),
        (0x0902, b"no room "),
        (0x1000, b"2.25.9.0"),
    ]
    rest = b"".join(struct.pack("<HHI", 0, element, len(value)) + value for element, value in elements)
    yield struct.pack("<HHII", 0, 0, 4, len(rest)) + rest, 0xA700


class AnswersTests(SynchronousTestCase):
    """How the load generator reads what the peer sends."""

    def test_status(self) -> None:
        """The status is found for every Message ID, also where its bytes look like a tag."""
        for message_id in range(0x10000):
            for command, status in responses(message_id):
                if loadgen.response_status(command) != (message_id, status):
                    self.fail(f"Message ID {message_id:04X}H: not {status:04X}H")

    def test_no_response(self) -> None:
        """A response to no message, or without a status, is an error."""
        for command, _ in responses(5):
            self.assertRaises(ValueError, loadgen.response_status, command[: command.index(b"\0\0\x20\x01")])
            self.assertRaises(ValueError, loadgen.response_status, command[: command.index(b"\0\0\0\x09")])

    @steady
    @given(st.binary(max_size=60), st.lists(st.integers(0, 60), max_size=4), st.booleans())
    def test_fragments(self, command: bytes, cuts: list[int], together: bool) -> None:
        """A command set comes together again however it is cut into PDVs, in one PDU or in several."""
        edges = [0, *sorted(cuts), 60]
        parts = [command[a:b] for a, b in itertools.pairwise(edges)]
        pdvs = [
            struct.pack(">IBB", len(part) + 2, 1, 3 if i == len(parts) - 1 else 1) + part
            for i, part in enumerate(parts)
        ]
        bodies = [b"".join(pdvs)] if together else pdvs
        found, last = b"", False
        for body in bodies:
            self.assertFalse(last)
            fragment, last = loadgen.command_fragment(struct.pack(">BBI", 4, 0, len(body)) + body)
            found += fragment
        self.assertEqual((found, last), (command, True))

    def test_percentile(self) -> None:
        """Percentiles are the nearest rank, in milliseconds."""
        times = [i / 1000 for i in range(1000, 0, -1)]
        self.assertEqual(summary(times), {"p50": 500.0, "p99": 990.0, "p99.9": 999.0, "max": 1000.0})
        self.assertEqual(summary([0.004])["p50"], 4.0)
        self.assertEqual(summary([])["p99"], 0.0)

    def test_sizes(self) -> None:
        """Sizes are read with powers of 1024."""
        self.assertEqual([loadgen.byte_count(text) for text in ("8K", "1g", "17")], [8192, 1024**3, 17])
        self.assertRaisesRegex(Exception, "expected a number of bytes", loadgen.byte_count, "8X")


class ServersTests(SynchronousTestCase):
    """The load generator with real servers."""

    def setUp(self) -> None:
        self.directory = temporary_directory(self)
        self.storage = Storage("here", self.directory)

    def start(self, peer: Peer) -> Server:
        """Start a server that is stopped after the test."""
        stack = contextlib.ExitStack()
        self.addCleanup(stack.close)
        return stack.enter_context(Server(peer, self.storage))

    def load(self, server: Server, **kind: int) -> loadgen.Load:
        """Objects for the server, with UIDs that are known."""
        load = loadgen.Load(host="127.0.0.1", port=server.place.port, run=RUN, size=8 * 1024, stall=20)
        return dataclasses.replace(load, **kind)  # type: ignore[arg-type]  # only numbers and flags are given

    def expected(self, load: loadgen.Load, max_pdu: int) -> list[bytes]:
        """The data sets of a load, sorted."""
        found = []
        for association in range(load.associations):
            stream = ObjectStream(RUN, association)
            stream.use(object_template(load.size, max_pdu))
            for number in range(load.objects):
                stream.advance(number + 1)
                found.append(stream.data_set())
        return sorted(found)

    def test_dcmtk(self) -> None:
        """Every object arrives at DCMTK byte for byte, in one association or one each, in long PDUs or short."""
        for name, max_pdu in (("dcmtk", 16384), ("dcmtk-128k", 131072)):
            server = self.start(BY_NAME[name])
            for each in (False, True):
                for size, objects in ((8 * 1024, 5), (512 * 1024, 2)):
                    load = self.load(
                        server, associations=3, objects=objects, size=size, association_per_object=each
                    )
                    outcome = loadgen.run(load)
                    self.assertEqual(outcome.statuses, {0: 3 * objects}, outcome.failures)
                    self.assertTrue(outcome.ok)
                    self.assertEqual(outcome.max_pdu, max_pdu)
                    self.assertEqual(len(outcome.association_times), 3 * objects if each else 3)
                    files = [pydicom.dcmread(path) for path in server.place.storage.iterdir()]
                    self.assertEqual(len({ds.SOPInstanceUID for ds in files}), 3 * objects)
                    stored = sorted(
                        path.read_bytes()[
                            144 + pydicom.dcmread(path).file_meta.FileMetaInformationGroupLength :
                        ]
                        for path in server.place.storage.iterdir()
                    )
                    self.assertEqual(stored, self.expected(load, max_pdu))
                    server.remove_objects()
                    self.assertEqual(list(server.place.storage.iterdir()), [])

    def test_tls(self) -> None:
        """Over TLS every object arrives at DCMTK and at this server, of one or more processes, byte for byte."""
        ours = BY_NAME["storescp-tls"]
        for peer in (BY_NAME["dcmtk-tls"], ours, ours.with_arguments(("--workers", "2"))):
            server = self.start(peer)
            for each in (False, True):
                load = self.load(
                    server, associations=3, objects=2, size=512 * 1024, association_per_object=each, tls=True
                )
                outcome = loadgen.run(load)
                self.assertEqual(outcome.statuses, {0: 6}, outcome.failures)
                self.assertTrue(outcome.ok)
                files = [path for path in server.place.storage.rglob("*") if path.is_file()]
                stored = [data_set_of(path) for path in files if ".storescp" not in path.parts]
                self.assertEqual(sorted(stored), self.expected(load, outcome.max_pdu))
                server.remove_objects()
            # Nothing of it was plain.
            self.assertFalse(loadgen.run(self.load(server, objects=1)).ok)

    def test_window(self) -> None:
        """With a window objects are sent without waiting, and all arrive; without one in the answer they wait."""
        server = self.start(BY_NAME["storescp-64"])
        for size, objects in ((8 * 1024, 200), (700 * 1024, 5)):
            load = self.load(server, associations=2, objects=objects, size=size, window=16)
            outcome = loadgen.run(load)
            self.assertEqual(outcome.statuses, {0: 2 * objects}, outcome.failures)
            self.assertTrue(outcome.ok)
            files = [path for path in server.place.storage.rglob("*.dcm") if ".storescp" not in path.parts]
            self.assertEqual(sorted(map(data_set_of, files)), self.expected(load, outcome.max_pdu))
            server.remove_objects()
        server = self.start(BY_NAME["dcmtk"])
        self.assertTrue(loadgen.run(self.load(server, objects=20, window=16)).ok)

    def test_raw_copy(self) -> None:
        """The raw copy writes every data set as it was sent, with and without syncing."""
        for name in ("raw", "raw-sync"):
            server = self.start(BY_NAME[name])
            for size in (8 * 1024, 700 * 1024):
                load = self.load(server, associations=4, objects=3, size=size)
                self.assertTrue(loadgen.run(load).ok)
                stored = sorted(path.read_bytes() for path in server.place.storage.iterdir())
                self.assertEqual(stored, self.expected(load, 0))
                server.remove_objects()

    def test_associations_only(self) -> None:
        """With a size of 0, associations are made and released, and counted."""
        for name in ("raw", "dcmtk"):
            server = self.start(BY_NAME[name])
            outcome = loadgen.run(
                self.load(server, associations=2, objects=10, size=0, association_per_object=True)
            )
            self.assertTrue(outcome.ok, outcome.failures)
            self.assertEqual((outcome.objects, outcome.object_bytes), (20, 0))
            self.assertEqual((len(outcome.association_times), len(outcome.response_times)), (20, 20))
            self.assertEqual(list(server.place.storage.iterdir()), [])

    def test_pynetdicom(self) -> None:
        """pynetdicom's application takes the objects, too: one each in an association of its own."""
        server = self.start(BY_NAME["pynetdicom"])
        load = self.load(server, associations=2, objects=2, association_per_object=True)
        self.assertEqual(loadgen.run(load).statuses, {0: 4})
        self.assertEqual(len(list(server.place.storage.iterdir())), 4)

    def test_command(self) -> None:
        """The command prints one JSON object, shares the work among processes, and its UIDs are new in every run."""
        server = self.start(BY_NAME["raw"])
        arguments = "--associations 4 --objects 5 --size 8K --processes 2".split()
        command = [sys.executable, "-m", "bench.loadgen", "127.0.0.1", str(server.place.port), *arguments]
        environment = os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parent.parent)}
        for _ in range(2):
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            self.assertEqual((done.returncode, done.stderr), (0, ""))
            printed = json.loads(done.stdout)
            self.assertEqual(
                (printed["objects"], printed["statuses"], printed["failures"]), (20, {"0000": 20}, {})
            )
            self.assertGreater(printed["objects_per_second"], 0)
            self.assertGreater(printed["response_ms"]["p50"], 0)
        files = [pydicom.dcmread(path, force=True) for path in server.place.storage.iterdir()]
        self.assertEqual(len({ds.SOPInstanceUID for ds in files}), 40)
        self.assertEqual(len({ds.StudyInstanceUID for ds in files}), 8)

    def test_refused(self) -> None:
        """A rejected association, an aborted one, and a port where nobody listens are counted, and end the run."""
        dcmtk = BY_NAME["dcmtk"]
        for option, words in (("--refuse", "A-ASSOCIATE-RJ"), ("--abort-after", "A-ABORT")):
            with Server(dcmtk.with_arguments([option]), self.storage) as server:
                outcome = loadgen.run(self.load(server, associations=2, objects=2))
                self.assertEqual(outcome.failures.total(), 2)
                self.assertTrue(all(why.startswith(words) for why in outcome.failures), outcome.failures)
                self.assertEqual((outcome.objects, outcome.ok), (0, False))
                each = self.load(server, associations=2, objects=2, association_per_object=True)
                self.assertEqual(loadgen.run(each).failures.total(), 4)
        nobody = loadgen.Load(host="127.0.0.1", port=free_port(), associations=2, association_per_object=True)
        self.assertEqual(loadgen.run(dataclasses.replace(nobody, objects=2000)).failures.total(), 4000)

    def test_silent(self) -> None:
        """A peer that never answers ends the run after the time without progress."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            load = loadgen.Load(host="127.0.0.1", port=listener.getsockname()[1], stall=0.05)
            self.assertEqual(loadgen.run(load).failures, {"no progress for 0.05 s": 1})

    def test_stopped(self) -> None:
        """A server ends with its ``with`` block, together with its children, and its directory is gone."""
        listener = self.enterContext(socket.create_server(("127.0.0.1", 0)))
        program = (
            "import os, socket, sys, time\n"
            "if not os.fork():\n"
            "    connection = socket.create_connection(('127.0.0.1', int(sys.argv[2])))\n"
            "    time.sleep(60)\n"
            "socket.create_server(('127.0.0.1', int(sys.argv[1]))).accept()\n"
            "time.sleep(60)\n"
        )

        def command(place: Place) -> list[str]:
            return [sys.executable, "-c", program, str(place.port), str(listener.getsockname()[1])]

        with Server(Peer("forks", "forks", command), self.storage) as server:
            members = procfs.tree(server.pid)
            self.assertEqual((len(members), members[0]), (2, server.pid))
            resident = server.resident_mebibytes()  # first: a process may still be growing
            self.assertGreater(resident, 1)
            self.assertGreaterEqual(server.peak_mebibytes(), resident)
            self.assertGreaterEqual(server.cpu_seconds(), 0)
            connection = self.enterContext(listener.accept()[0])
        connection.settimeout(20)
        self.assertEqual(connection.recv(1), b"")  # only the end of the child closes it
        self.assertEqual(procfs.tree(members[0]), [])
        self.assertEqual(list(self.directory.iterdir()), [])

    def test_cpus(self) -> None:
        """A server runs on the CPUs it is given."""
        cpu = min(os.sched_getaffinity(0))
        server = self.start(dataclasses.replace(BY_NAME["dcmtk"], cpus=frozenset({cpu})))
        self.assertEqual(os.sched_getaffinity(server.pid), {cpu})

    def test_no_start(self) -> None:
        """A server that ends at once is reported with its last words."""

        def command(_: object) -> list[str]:
            return [sys.executable, "-c", "import sys; print('first'); sys.exit('no such option')"]

        server = Server(Peer("odd", "odd", command), self.storage)
        self.assertRaisesRegex(PeerFailed, "^odd ended with exit code 1: no such option$", server.__enter__)

    def test_measured(self) -> None:
        """A measurement has a sample for each round, and leaves nothing behind."""
        workloads = [workload for workload in USUAL.workloads if workload.name in ("8x8K", "each8K")]
        comparison = Comparison("some", "", ("raw", "dcmtk"), tuple(workloads), storages=("here",))
        plan = Settings([self.storage], {"raw": BY_NAME["raw"]}, rounds=2, seconds=0.01)
        lines: list[str] = []
        results = measure(comparison, plan, lines.append)
        self.assertEqual(len(lines), 2)
        self.assertEqual([(r.peer.name, len(r.samples), r.trouble) for r in results], [("raw", 2, "")] * 2)
        for result in results:
            median = result.median()
            assert median is not None
            self.assertTrue(
                all(value > 0 for value in (median.objects_per_second, median.p50, median.peak_mebibytes))
            )
        self.assertEqual(list(self.directory.iterdir()), [])

    def test_stored(self) -> None:
        """What is measured with much stored already stays, and is sent to a server that has just that much."""
        with Server(BY_NAME["dcmtk"], self.storage) as server:
            filled = Filled(server)
            measured = filled.up_to(40)
            self.assertEqual(len(list(server.place.storage.iterdir())), 40)
            filled.play_round(measured)
            self.assertEqual((measured.trouble, len(measured.samples)), ("", 1))
            there = len(list(server.place.storage.iterdir()))
            self.assertEqual(there, 40 + 8 * measured.objects)
            filled.up_to(there)
            self.assertEqual(len(list(server.place.storage.iterdir())), there)
        settings = Settings([Storage("disk", self.directory)], {"dcmtk": BY_NAME["dcmtk"]}, 1, 0.01)
        results = measure_stored(settings, lambda line: None, steps=(8, 16))
        self.assertEqual([(r.trouble, len(r.samples)) for r in results], [("", 1), ("", 1)])
        self.assertEqual(list(self.directory.iterdir()), [])

    def test_benchmark(self) -> None:
        """``python -m bench`` prints the table and writes JSON."""
        self.addCleanup(signal.signal, signal.SIGTERM, signal.getsignal(signal.SIGTERM))
        file = self.directory / "results.json"
        printed = io.StringIO()
        arguments = "--rounds 1 --seconds 0.01 --storage disk --workload 1x8K --server raw".split()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
            code = bench_main.main([*arguments, "--disk", str(self.directory), "--json", str(file)])
        self.assertEqual(code, 0)
        self.assertRegex(printed.getvalue(), r"1 x 8 KiB, disk +raw copy +[0-9,.]+ ")
        (result,) = json.loads(file.read_text())["results"]
        self.assertEqual((result["server"], result["workload"], len(result["samples"])), ("raw", "1x8K", 1))


class IndexTests(SynchronousTestCase):
    """The index when it is large."""

    def setUp(self) -> None:
        self.directory = temporary_directory(self)
        self.storage = Storage("here", self.directory)

    def test_rows(self) -> None:
        """Instances come from eight senders in turn, each with a UID of its own, some hundred in a series."""
        found = Rows(seed=5).take(8000)
        again = Rows(seed=5).take(8)
        self.assertEqual([instance.path for instance in found[:8]], [instance.path for instance in again])
        paths = [instance.path.split("/") for instance in found]
        self.assertEqual(len({path[2] for path in paths}), 8000)
        self.assertTrue(all(UID(uid.removesuffix(".dcm")).is_valid for path in paths for uid in path))
        self.assertEqual(len({path[1] for path in paths[:8]}), 8)
        self.assertEqual({path[1] for path in paths[:8]}, {path[1] for path in paths[8:16]})
        self.assertTrue(70 <= len({path[1] for path in paths}) <= 120)
        index = Index(str(self.directory / "index.db"))
        self.addCleanup(index.close)
        fill(index, Rows(seed=5), 8000)
        totals = index.totals()
        self.assertEqual((totals.instances, totals.series), (8000, len({path[1] for path in paths})))
        self.assertEqual(totals.studies, totals.patients)

    def test_measured(self) -> None:
        """There is a ratio of the rates, and a time in which the real server started; nothing is left behind."""
        lines: list[str] = []
        checks = measure_index(BY_NAME["storescp"], [self.storage], 1, lines.append, many=2000)
        self.assertEqual([check.name for check in checks], ["index, here", "start, here"])
        self.assertEqual(len(lines), 2)
        for check in checks:
            assert check.value is not None
            self.assertGreater(check.value, 0)
            self.assertIn("2,000 instances", check.title)
        self.assertEqual(list(self.directory.iterdir()), [])

    def test_no_start(self) -> None:
        """A server that does not start is reported with its last words."""
        path = self.directory / "index.db"
        path.write_bytes(b"no database" * 100)
        with self.assertRaisesRegex(PeerFailed, "^storescp did not start: .*index"):
            start_seconds(BY_NAME["storescp"], self.storage, path)
        self.assertEqual([path.name for path in self.directory.iterdir()], ["index.db"])


class StorageTests(SynchronousTestCase):
    """Directories and what becomes of the files in them."""

    def setUp(self) -> None:
        self.directory = temporary_directory(self)

    def fill(self, storage: Storage) -> pathlib.Path:
        """A new directory with a file in it and one in a directory below."""
        top = storage.new_directory("server")
        (top / "study").mkdir()
        for path in (top / "file", top / "study" / "file"):
            path.write_bytes(b"object")
        return top

    def test_remove(self) -> None:
        """Files and directories are gone."""
        storage = Storage("tmpfs", self.directory)
        top = self.fill(storage)
        storage.remove(top / "file")
        self.assertEqual([path.name for path in top.iterdir()], ["study"])
        storage.remove(top)
        self.assertEqual(list(self.directory.iterdir()), [])

    def test_keep_inodes(self) -> None:
        """With keep_inodes they are out of the way, and their files live on empty."""
        storage = Storage("disk", self.directory, keep_inodes=True)
        top = self.fill(storage)
        inodes = {path.stat().st_ino for path in top.rglob("file")}
        storage.remove(top / "file")
        self.assertEqual([path.name for path in top.iterdir()], ["study"])
        storage.remove(top)
        self.assertFalse(top.exists())
        left = [path for path in self.directory.rglob("*") if path.is_file()]
        self.assertEqual({path.stat().st_ino for path in left}, inodes)
        self.assertEqual([path.stat().st_size for path in left], [0, 0])

    def test_harmless(self) -> None:
        """What is asked of the system for steady figures is no error where it cannot be had."""
        spread(self.directory)
        spread(pathlib.Path("/proc"))
        Storage("here", self.directory).warm(8 * 1024**2)
        self.assertEqual(list(self.directory.iterdir()), [])


class PeersTests(SynchronousTestCase):
    """Peers that are not there."""

    def test_missing(self) -> None:
        """A missing peer is one line, and is not measured."""
        lines: list[str] = []
        self.patch(os, "environ", {"PATH": "/nonexistent"})
        self.assertEqual(available([BY_NAME["dcmtk"], BY_NAME["raw"]], lines.append), {"raw": BY_NAME["raw"]})
        self.assertEqual(lines, ["DCMTK's storescp is missing: apt-get install dcmtk"])


def result(peer: str, *rates: float, comparison: Comparison = USUAL, storage: str = "tmpfs") -> Result:
    """A Result of the first workload with these rates."""
    samples = [Sample(rate, rate / 2, 0.25, 40.0, 1.5, 2.5, 3.5, 0.3) for rate in rates]
    return Result(comparison, storage, comparison.workloads[0], BY_NAME[peer], samples)


class PlotsTests(SynchronousTestCase):
    """From JSON to SVG."""

    def setUp(self) -> None:
        self.directory = temporary_directory(self)

    def run_json(self, name: str, *results: Result) -> pathlib.Path:
        """A file as a run leaves it."""
        file = self.directory / name
        file.write_text(json.dumps(as_json(results, [], "here")))
        return file

    def plot(self, *files: pathlib.Path, environment: str = ".venv-plot") -> tuple[int, str, str]:
        """Exit code, and what was printed to stdout and stderr; ``environment`` as tools/prepare makes it."""
        root = pathlib.Path(__file__).parent.parent
        python = root / environment / "bin" / "python"
        done = subprocess.run(
            [python, "-m", "bench.plots", *files, "--into", self.directory / "docs"],
            capture_output=True,
            text=True,
            cwd=root,
        )
        return done.returncode, done.stdout, done.stderr

    def test_figures(self) -> None:
        """There is a figure for what was measured and for nothing else."""
        usual = self.run_json(
            "usual.json",
            result("storescp", 1234),
            result("dcmtk", 2345),
            result("raw"),
        )
        more = self.run_json("more.json", result("storescp", 77, comparison=ASSOCIATE))
        code, printed, complaints = self.plot(usual, more)
        self.assertEqual((code, complaints), (0, ""))
        names = [pathlib.Path(line).name for line in printed.splitlines()]
        self.assertEqual(names, ["rates.svg", "associations.svg", "latency-tmpfs.svg"])
        svg = (self.directory / "docs" / "rates.svg").read_text()
        texts = {(element.text or "").strip() for element in ElementTree.fromstring(svg).iter()}
        self.assertLessEqual({"storescp", "DCMTK", "1,234", "2,345", "1 x 512 KiB"}, texts)
        self.assertNotIn("raw copy", texts)  # not measured

    def test_again(self) -> None:
        """The same measurements give the same file; of what was measured twice the later counts."""
        first, second = (
            self.run_json(f"{rate}.json", result("storescp", rate, comparison=ASSOCIATE)) for rate in (8, 6)
        )
        file = self.directory / "docs" / "associations.svg"
        drawn = []
        for files in ((second,), (first, second), (second, first)):
            self.assertEqual(self.plot(*files)[0], 0)
            drawn.append(file.read_text())
        self.assertEqual(drawn[0], drawn[1])
        self.assertNotEqual(drawn[1], drawn[2])

    def test_mistakes(self) -> None:
        """A file that is missing, or no JSON of a run, is one line; so is matplotlib where it is missing."""
        other = self.directory / "other.json"
        self.assertEqual(self.plot(other), (1, "", f"{other}: No such file or directory\n"))
        for content in ("no JSON", '{"results": [{}]}'):
            other.write_text(content)
            code, _, complaint = self.plot(other)
            self.assertEqual(
                (code, complaint), (1, f"expected JSON that python -m bench --json wrote: {other}\n")
            )
        code, _, complaint = self.plot(other, environment=".venv")
        self.assertEqual((code, complaint), (1, "matplotlib is missing: pip install 'storescp[bench]'\n"))


class ReportTests(SynchronousTestCase):
    """From samples to the table."""

    def test_table(self) -> None:
        """Medians are shown, ratios by round, and a dash for what is missing."""
        results = [
            result("storescp", 900, 1000, 1500),
            result("dcmtk", 2500, 2000, 1000),
            result("pynetdicom"),
        ]
        results[-1].trouble = "it ended"
        lines = table(results).splitlines()
        self.assertEqual(
            lines[2].split(), "1 x 512 KiB, tmpfs storescp 1,000 500 0.250 40.0 1.50 2.50 3.50".split()
        )
        # The rounds gave 0.36, 0.5 and 1.5.
        self.assertEqual(lines[3].split(), "DCMTK 2,000 1,000 0.250 40.0 1.50 2.50 3.50 0.50 x".split())
        self.assertEqual(lines[4].split(), "pynetdicom - - - - - - -".split())
        self.assertEqual(lines[-1], "pynetdicom, tmpfs, 1 x 512 KiB: it ended")
        self.assertEqual(len(lines), 7)

    def test_goals(self) -> None:
        """Goals are judged by the ratio, each in the comparison and for the server that it is for."""

        def some(comparison: Comparison, *peers: str) -> list[tuple[float | None, bool]]:
            results = [
                result(peer, rate, comparison=comparison)
                for peer, rate in zip(peers, (1000, 1100, 200, 900), strict=False)
            ]
            return [(check.least, check.reached) for check in goals(results)]

        self.assertEqual(some(USUAL, "storescp", "dcmtk", "pynetdicom"), [(1.0, False), (6.0, False)])
        durable = ("storescp-sync", "orthanc-sync", "raw-sync", "storescp")
        self.assertEqual(some(DURABLE, *durable), [(2.0, False), (0.6, True)])
        self.assertEqual(some(DURABLE, "storescp", "orthanc-sync"), [])
        self.assertEqual(some(dataclasses.replace(USUAL, goals=()), "storescp", "dcmtk"), [])

    def test_limits(self) -> None:
        """A figure reaches its limit or misses it; what could not be measured is missed."""
        checks = [
            Check("huge", "peak", 95.9, below=96.0, unit="MiB"),
            Check("many", "peak", 96.0, below=96.0, unit="MiB"),
            Check("ratio", "rate", 0.9, least=0.9),
            Check("ratio", "rate", 0.89, least=0.9, detail="slow"),
            Check("ratio", "rate", None, least=0.9, detail="it ended"),
        ]
        self.assertEqual(
            [line.split() for line in limits(checks).splitlines()],
            [
                "peak reached 95.90 below 96 MiB".split(),
                "peak MISSED 96.00 below 96 MiB".split(),
                "rate reached 0.90 at least 0.9".split(),
                "rate MISSED 0.89 at least 0.9 slow".split(),
                "rate MISSED - at least 0.9 it ended".split(),
            ],
        )
        self.assertEqual(limits([]), "")

    def test_json(self) -> None:
        """The JSON has every sample."""
        document = json.loads(json.dumps(as_json([result("raw", 5, 7)], [], "here")))
        (found,) = document["results"]
        self.assertEqual([sample["objects_per_second"] for sample in found["samples"]], [5, 7])
        self.assertEqual(found["median"]["objects_per_second"], 6)
