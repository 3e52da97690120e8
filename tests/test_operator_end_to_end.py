"""``python -m storescp`` as a process: on the archive of a server that runs, and as the sender."""

from __future__ import annotations

import io
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pydicom
from twisted.trial.unittest import SynchronousTestCase

from storescp.part10 import FileMeta
from storescp.stored_file import NotAnInstance, read_instance
from tests.raw_scu import CT, EXPLICIT, RawSCU, instance
from tests.server import DEADLINE, Server, data_set_of, environment, free_port, temporary_directory
from tests.test_end_to_end import dcmtk_storescp

DATA = pathlib.Path(pydicom.__file__).parent / "data"

# The command with a constant or two of its own: verify waits 10 s for files that have just been changed.
PATCHED = (
    "import sys; from storescp import index, operator_reindex, operator_verify; {};"
    " from storescp.__main__ import main; sys.exit(main())"
)


def storescp(*arguments: object, patch: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command until it ends."""
    start = ["-c", PATCHED.format(patch)] if patch else ["-m", "storescp"]
    return subprocess.run(
        [sys.executable, *start, *map(str, arguments)],
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )


def sent(path: pathlib.Path) -> bytes:
    """The data set of a file, with the padding that one of them lacks (deflated, PS3.5 §A.5)."""
    data_set = data_set_of(path)
    return data_set + b"\0" * (len(data_set) & 1)


def sendable() -> list[pathlib.Path]:
    """Files of pydicom's test data that are instances with UIDs in File Meta too, each SOP Instance UID once."""
    found: dict[str, pathlib.Path] = {}
    for path in sorted(DATA.rglob("*")):
        if path.is_file():
            try:
                found.setdefault(read_instance(str(path.parent), path.name, None).sop_instance_uid, path)
            except NotAnInstance:
                pass
    return list(found.values())


class Sender(threading.Thread):
    """Stores small instances, one after the other, until it is told to stop; ``statuses`` are the answers."""

    def __init__(self, server: Server, number: int) -> None:
        super().__init__(daemon=True)
        self._server = server
        self._number = number
        self._told = threading.Event()
        self.enough = threading.Event()
        self.statuses: list[object] = []

    def run(self) -> None:
        with RawSCU(self._server.address) as scu:
            scu.associate()
            for count in self._counts():
                uid = f"1.2.{self._number}.{count}"
                data_set = instance(
                    uid, study=f"1.2.{count // 50}", series=f"1.2.{count // 50}.{self._number}"
                )
                self.statuses.append(scu.store(uid, data_set))
            scu.release()

    def _counts(self) -> Iterator[int]:
        count = 0
        while not self._told.is_set():
            yield count
            count += 1
            if count == 20:
                self.enough.set()

    def finish(self) -> int:
        """Stop; how many instances were stored, which must be all."""
        self._told.set()
        self.join(DEADLINE)
        assert not self.is_alive()
        assert set(self.statuses) == {0}, self.statuses
        return len(self.statuses)


class OnRunningServerTests(SynchronousTestCase):
    """The archive of a server that goes on storing."""

    def senders(self, server: Server) -> list[Sender]:
        """Two senders that have begun."""
        senders = [Sender(server, number) for number in (1, 2)]
        for sender in senders:
            sender.start()
        for sender in senders:
            self.assertTrue(sender.enough.wait(DEADLINE))
        return senders

    def assertWell(self, server: Server, files: int) -> None:
        """Files and rows agree, and are as many as that."""
        done = storescp("verify", "-d", server.storage, "--json")
        self.assertEqual((done.returncode, done.stderr), (0, ""), done.stdout)
        summary = json.loads(done.stdout)["summary"]
        self.assertEqual((summary["files"], summary["rows"], summary["findings"]), (files, files, {}))

    def test_verify(self) -> None:
        """While senders send, verify finds nothing wrong, time after time; its exit status is 0."""
        server = Server(self, "--sync", "never")
        senders = self.senders(server)
        seen = []
        for _ in range(3):
            done = storescp("verify", "-d", server.storage, "--json", "--jobs", 2)
            self.assertEqual((done.returncode, done.stderr), (0, ""), done.stdout)
            seen.append(json.loads(done.stdout)["summary"]["files"])
        self.assertEqual(seen, sorted(set(seen)))  # more each time: they did send
        self.assertWell(server, sum(sender.finish() for sender in senders))

    def test_reindex(self) -> None:
        """While senders send, the index is made anew, and again: all are answered with 0000H, no row is lost."""
        server = Server(self, "--sync", "never")
        senders = self.senders(server)
        for arguments in (["--all"], ["--all", "--digest", "md5"], []):
            done = storescp("reindex", "-d", server.storage, "--jobs", 2, *arguments)
            self.assertEqual((done.returncode, done.stderr), (0, ""), done.stdout)
            self.assertIn("0 rows removed; no findings", done.stdout)
        self.assertWell(server, sum(sender.finish() for sender in senders))
        ((digests, senders_known),) = server.rows(
            "SELECT count(digest), count(*) FROM instances WHERE calling_ae_title = 'RAW'"
        )
        self.assertGreater(int(str(digests)), 40)
        self.assertEqual(senders_known, len(server.files()))

    def test_damage(self) -> None:
        """Each kind of damage to an archive is found, in one run, by several processes."""
        server = Server(self)
        with RawSCU(server.address) as scu:
            scu.associate()
            for name in range(1, 7):
                self.assertEqual(scu.store(f"1.2.3.{name}", instance(f"1.2.3.{name}")), 0)
            early = instance("1.2.3.8", pixels=bytes(100))[:-30]  # is stored as it came
            self.assertEqual(scu.store("1.2.3.8", early), 0)
            scu.release()
        self.assertEqual(
            storescp("reindex", "-d", server.storage, "--all", "--digest", "sha256").returncode, 0
        )
        paths = sorted(server.files().values())
        names = [str(path.relative_to(server.storage)) for path in paths]
        self.assertEqual(data_set_of(paths[6]), early)
        paths[0].unlink()
        os.truncate(paths[1], 700)
        with paths[2].open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"\1")
        shutil.copyfile(paths[4], paths[3])
        with paths[5].open("r+b") as file:
            file.seek(128)
            file.write(b"MOCK")
        meta = FileMeta(CT, EXPLICIT, "A", "B").encode("1.2.3.7")
        (server.storage / "new.dcm").write_bytes(meta + instance("1.2.3.7"))
        done = storescp(
            "verify", "-d", server.storage, "--json", "--jobs", 2, patch="operator_verify.SETTLING = 0"
        )
        self.assertEqual((done.returncode, done.stderr), (1, ""))
        *findings, summary = map(json.loads, done.stdout.splitlines())
        self.assertEqual(
            {finding["path"]: finding["kind"] for finding in findings},
            {
                names[0]: "missing",
                names[1]: "size",
                names[2]: "digest",
                names[3]: "uid",
                names[5]: "not-dicom",
                names[6]: "truncated",
                "new.dcm": "not-indexed",
            },
        )
        self.assertEqual(sum(summary["summary"]["findings"].values()), 7)


class ReindexTests(SynchronousTestCase):
    """The index made anew, and interrupted."""

    def test_killed(self) -> None:
        """Killed in the middle, it leaves no process, and a second run goes on where the first one ended."""
        root = temporary_directory(self)
        for number in range(300):
            uid = f"1.2.3.{number}"
            (root / f"{uid}.dcm").write_bytes(FileMeta(CT, EXPLICIT, "A", "B").encode(uid) + instance(uid))
        # It returns when the processes that read have closed their stdout.
        killed = storescp(
            "reindex",
            *("-d", root, "--jobs", 2),
            patch="import os, itertools; operator_reindex.MAX_ROWS = 40; numbers = itertools.count();"
            " add_if = index.Index.add_if; index.Index.add_if = lambda self, *arguments:"
            " os.kill(os.getpid(), 9) if next(numbers) == 3 else add_if(self, *arguments)",
        )
        self.assertEqual((killed.returncode, killed.stdout), (-signal.SIGKILL, ""))
        done = storescp("reindex", "-d", root, "--json")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        summary = json.loads(done.stdout)["summary"]
        self.assertEqual((summary["entered"], summary["unchanged"]), (180, 120))
        done = storescp("verify", "-d", root, "--json", patch="operator_verify.SETTLING = 0")
        self.assertEqual(json.loads(done.stdout)["summary"]["rows"], 300)
        self.assertEqual((done.returncode, done.stderr), (0, ""))

    def test_interrupted(self) -> None:
        """SIGINT ends it in one line, and so does the death of a process that reads."""
        root = temporary_directory(self)
        (root / "a.dcm").write_bytes(FileMeta(CT, EXPLICIT, "A", "B").encode("1.2") + instance("1.2"))
        for victim, status, line in (
            ("os.killpg(0, signal.SIGINT)", -signal.SIGINT, "storescp: interrupted\n"),  # 130 for shells
            ("os.kill(os.getpid(), 9)", 1, "storescp: a process that read files was killed\n"),
        ):
            patch = (
                "import os, signal; os.setpgid(0, 0);"
                f" operator_reindex.read_instance = lambda *_: [{victim}, signal.pause()]"
            )
            done = storescp("reindex", "-d", root, "--jobs", 2, patch=patch)
            self.assertEqual((done.returncode, done.stdout, done.stderr), (status, "", line))

    def test_interrupted_at_once(self) -> None:
        """Processes that read are deaf to SIGINT from their first moment on: it is for the command to end them."""
        root = temporary_directory(self)
        (root / "a.dcm").write_bytes(FileMeta(CT, EXPLICIT, "A", "B").encode("1.2") + instance("1.2"))
        patch = "import os, signal; os.register_at_fork("
        patch += "after_in_child=lambda: os.kill(os.getpid(), signal.SIGINT))"
        done = storescp("reindex", "-d", root, "--jobs", 2, patch=patch)
        self.assertEqual((done.returncode, done.stderr), (0, ""))

    def test_output_cut(self) -> None:
        """Nobody who reads its output any more is no traceback; a full disk is told, also at the very end."""
        root = temporary_directory(self)
        for number in range(5):
            (root / str(number)).touch()
        read, write = os.pipe()
        os.close(read)
        self.addCleanup(os.close, write)
        full = os.open("/dev/full", os.O_WRONLY)
        self.addCleanup(os.close, full)
        for command, output, line in (
            ("reindex", write, ""),
            ("stats", write, ""),
            ("reindex", full, "storescp: No space left on device\n"),
            ("stats", full, "storescp: standard output: No space left on device\n"),
        ):
            done = subprocess.run(
                [sys.executable, "-m", "storescp", command, "-d", root],
                env={name: value for name, value in environment().items() if name != "PYTHONUNBUFFERED"},
                stdout=output,
                stderr=subprocess.PIPE,
                text=True,
                timeout=DEADLINE,
                check=False,
            )
            self.assertEqual((done.returncode, done.stderr), (1, line), command)

    def test_poor_output(self) -> None:
        """Names are printed in whatever characters there are; without stderr the work is done, too."""
        root = temporary_directory(self)
        (root / "\xe4\u20ac\n.dcm").touch()
        done = subprocess.run(
            [
                "sh",
                "-c",
                'exec "$@" 2>&-',
                "sh",
                sys.executable,
                "-m",
                "storescp",
                "reindex",
                "-d",
                str(root),
            ],
            env=environment() | {"PYTHONIOENCODING": "ascii"},
            stdout=subprocess.PIPE,
            text=True,
            timeout=DEADLINE,
        )
        self.assertEqual(done.returncode, 1)
        self.assertEqual(done.stdout.splitlines()[0], r"not-dicom: \xe4\u20ac\n.dcm: not a DICOM file")


class SenderTests(SynchronousTestCase):
    """The command as the sender."""

    def test_echo(self) -> None:
        """C-ECHO with the server; what keeps it from an answer is one line and exit status 1."""
        server = Server(self, "--check-called-ae", "--ae-title", "ARCHIVE")
        done = storescp("echo", *server.address, "--called", "ARCHIVE")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertRegex(done.stdout, rf"\A127.0.0.1 port {server.port}: 0000H Success in \d+\.\d ms\n\Z")
        done = storescp("echo", *server.address)
        self.assertEqual(
            (done.returncode, done.stderr),
            (
                1,
                f"storescp: 127.0.0.1 port {server.port}: association rejected (permanent) by the service-user:"
                " called-AE-title-not-recognized\n",
            ),
        )
        done = storescp("echo", "127.0.0.1", free_port())
        self.assertEqual(done.returncode, 1)
        self.assertIn("cannot connect: Connection refused", done.stderr)

    def test_all_data(self) -> None:
        """Every instance of pydicom's test data arrives with its data set as it stands in the file."""
        files = sendable()
        self.assertGreater(len(files), 90)
        server = Server(self)
        done = storescp("send", *server.address, *files, "--calling", "ME")
        self.assertEqual((done.returncode, done.stderr), (0, ""), done.stdout)
        self.assertRegex(done.stdout, rf"\A{len(files)} x 0000H Success; ")
        self.assertEqual(sorted(map(data_set_of, server.files().values())), sorted(map(sent, files)))
        self.assertEqual(server.rows("SELECT DISTINCT calling_ae_title FROM instances"), [("ME",)])
        server.stop()
        done = storescp("verify", "-d", server.storage)
        self.assertEqual((done.returncode, done.stderr), (0, ""), done.stdout)

    def test_dcmtk(self) -> None:
        """DCMTK's storescp takes them too, of whatever transfer syntax, in PDUs as short as it wants them."""
        files = sendable()
        directory = temporary_directory(self)
        with dcmtk_storescp(self, directory, "-pdu", "4096") as port:
            done = storescp("send", "127.0.0.1", port, *files)
        self.assertEqual((done.returncode, done.stderr), (0, ""), done.stdout)
        self.assertRegex(done.stdout, rf"\A{len(files)} x 0000H Success; ")
        self.assertEqual(sorted(map(data_set_of, directory.iterdir())), sorted(map(sent, files)))

    def test_not_accepted(self) -> None:
        """More SOP classes than fit into an association, all of which the server refuses, are a line each."""
        server = Server(self, "--accept", "MR")
        directory = temporary_directory(self)
        for number in range(130):
            uid = f"1.2.3.{number}"
            meta = FileMeta(f"1.2.9.{number}", EXPLICIT, "A", "B").encode(uid)
            (directory / uid).write_bytes(meta + instance(uid, sop_class=f"1.2.9.{number}"))
        done = storescp("send", *server.address, directory)
        self.assertEqual((done.returncode, done.stderr), (1, ""))
        *lines, summary = done.stdout.splitlines()
        self.assertEqual(len(lines), 130)
        self.assertTrue(all("presentation context not accepted: 1.2.9." in line for line in lines))
        self.assertRegex(summary, "^130 not sent; ")
        self.assertEqual(server.stop()["associations"], 2)

    def test_large(self) -> None:
        """An object of 300 MB is sent with little memory."""
        server = Server(self, "--sync", "never")
        path = temporary_directory(self) / "large.dcm"
        data = io.BytesIO(instance("1.2.3", pixels=b""))
        pixels = 300_000_000
        head = data.getvalue()[:-4] + pixels.to_bytes(4, "little")
        path.write_bytes(FileMeta(CT, EXPLICIT, "A", "B").encode("1.2.3") + head)
        size = path.stat().st_size + pixels
        os.truncate(path, size)
        patch = "import atexit; atexit.register(lambda: print(open('/proc/self/status').read()))"
        done = storescp("send", *server.address, path, patch=patch)
        self.assertEqual((done.returncode, done.stderr), (0, ""), done.stdout)
        self.assertLess(int(re.findall(r"VmHWM:\s+(\d+) kB", done.stdout)[0]), 100_000)
        ((stored,),) = server.rows("SELECT size FROM instances")
        self.assertGreater(int(str(stored)), pixels)
