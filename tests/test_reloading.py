"""SIGHUP: what new settings change, what they leave alone, and what has to wait for a restart."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import signal
import threading
from collections.abc import Iterator

from twisted.trial.unittest import SynchronousTestCase

from storescp.access import MAX_CALLERS, Caller, Callers
from storescp.config import ConfigError, configured, gathered
from storescp.negotiation import CALLED_AE_TITLE_NOT_RECOGNIZED, LOCAL_LIMIT_EXCEEDED
from storescp.pdu import AAssociateAC, AAssociateRJ, UserIdentity
from storescp.reloading import Reloading, renumbered
from storescp.scu import SCU
from storescp.scu_errors import AssociationError
from tests.pki import Authority
from tests.raw_scu import CT, EXPLICIT, MR, RawSCU, instance
from tests.server import DEADLINE, Server, run, temporary_directory
from tests.test_end_to_end import DATA
from tests.test_tls_end_to_end import s_client
from tests.test_workers import workers_of


class ReadingTests(SynchronousTestCase):
    """Reloading."""

    def setUp(self) -> None:
        self.file = pathlib.Path(self.mktemp())
        self.given: dict[str, str] = {}
        self.variables: dict[str, str] = {}

    def start(self, content: str) -> Reloading:
        self.file.write_text(content)
        settings = gathered(self.file, self.given, self.variables)
        return Reloading(
            lambda: gathered(self.file, self.given, self.variables), settings, configured(settings)
        )

    def test_changes(self) -> None:
        """What a running server can follow is in the new configuration, and the rest as it was; all of it is told."""
        reloading = self.start("max-assoc: 3\nport: 1\naccept: CT")
        self.file.write_text("port: 2\naccept: [CT, MR]\nworkers: 4")
        reading = reloading.read()
        self.assertEqual(reading.config.listen, ("tcp:1",))
        self.assertEqual((reading.config.max_assoc, reading.config.workers), (10, 1))
        self.assertEqual(reading.config.accept_names, ("CT", "MR"))
        self.assertEqual(
            reading.changed,
            [f"accept: CT -> CT, MR ({self.file}:2)", "max-assoc: 3 -> 10 (default)"],
        )
        self.assertEqual(
            reading.waiting, [f"port: 1 -> 2 ({self.file}:1)", f"workers: 1 -> 4 ({self.file}:3)"]
        )
        reloading.take(reading)
        again = reloading.read()
        self.assertEqual((again.changed, again.waiting), ([], reading.waiting))
        self.assertEqual(again.config, reading.config)

    def test_same_values(self) -> None:
        """The same value in other words is no change."""
        reloading = self.start("accept: [CT, MR]\ntimeout: 10")
        self.file.write_text("accept: CT,MR\ntimeout: 10.0\nmax-assoc: 10\nno-index: off")
        self.assertEqual(reloading.read().changed, [])

    def test_precedence(self) -> None:
        """What the command line and the environment say stands against the new file."""
        self.given["max-assoc"] = "3"
        self.variables["STORESCP_MAX_PENDING"] = "4"
        reloading = self.start("")
        self.file.write_text("max-assoc: 30\nmax-pending: 40\ntimeout: 50")
        config = reloading.read().config
        self.assertEqual((config.max_assoc, config.max_pending, config.timeout), (3, 4, 50))

    def test_mistakes(self) -> None:
        """A file with a mistake, in whatever it says, is refused as a whole."""
        reloading = self.start("max-assoc: 3")
        for content in ("max-assoc: 4\nmax-pending: x", "max-assoc: 4\nworkers: x", "a: [", "callers: 5"):
            self.file.write_text(content)
            self.assertRaises(ConfigError, reloading.read)
        self.file.unlink()
        self.assertRaises(ConfigError, reloading.read)
        self.file.write_text("max-assoc: 4")
        self.assertEqual(reloading.read().config.max_assoc, 4)

    def test_tls(self) -> None:
        """TLS can change, but not begin or end: then all about it waits."""
        tls = "tls-port: 2762\ntls-certificate: a\ntls-client-cert: none\n"
        reloading = self.start(tls)
        self.file.write_text(tls + "tls-timeout: 5")
        config = reloading.read().config
        self.assertEqual(config.tls and config.tls.handshake_timeout, 5)
        self.file.write_text("max-assoc: 4")
        reading = reloading.read()
        self.assertEqual((reading.config.max_assoc, reading.config.tls), (4, configured_tls(tls, self)))
        self.assertEqual(len(reading.waiting), 3)
        reloading = self.start("")
        self.file.write_text(tls)
        reading = reloading.read()
        self.assertIsNone(reading.config.tls)
        self.assertEqual((reading.changed, len(reading.waiting)), ([], 3))

    def test_secrets(self) -> None:
        """What is told of changes has no passwords in it."""
        reloading = self.start("auth: memory:alice:secret1")
        self.file.write_text("auth: [memory:alice:secret2, file:/etc/passwd]")
        self.assertEqual(
            reloading.read().changed,
            [f"auth: memory (masked) -> memory (masked), file:/etc/passwd ({self.file}:1)"],
        )

    def test_callers(self) -> None:
        """A rule keeps its number, by which its associations count, wherever it stands; new ones get other numbers."""
        reloading = self.start("callers: {A: {max-assoc: 1}, B: {max-assoc: 2}}")
        self.file.write_text("callers: {C: {max-assoc: 3}, B: {max-assoc: 4}}")
        reading = reloading.read()
        self.assertEqual(numbers(reading.config.access.callers), {"C": 3, "B": 2})
        self.assertEqual(reading.changed, ["callers: changed: B", "callers: new: C", "callers: gone: A"])
        reloading.take(reading)
        self.file.write_text("callers: {A: {max-assoc: 1}, D: {max-assoc: 4}, default: {max-assoc: 9}}")
        reading = reloading.read()
        self.assertEqual(numbers(reading.config.access.callers), {"A": 1, "D": 4})
        self.assertEqual(
            reading.changed,
            ["callers: changed: default", "callers: new: A, D", "callers: gone: C, B"],
        )

    def test_numbers(self) -> None:
        """When there are no more numbers, those of rules that have gone are used, the oldest first."""
        full = {f"T{number}": number for number in range(1, MAX_CALLERS + 1)}
        known = tuple(Caller(name=name) for name in ("T3", "X", "Y"))
        callers, taken = renumbered(Callers(known), full)
        self.assertEqual(numbers(callers), {"T3": 3, "X": 1, "Y": 2})
        self.assertEqual(sorted(taken.values()), sorted(full.values()))


def numbers(callers: Callers) -> dict[str, int]:
    """The number of each rule."""
    return {caller.name: caller.number for caller in callers.known}


def configured_tls(content: str, case: SynchronousTestCase) -> object:
    """The settings of TLS in a file."""
    file = pathlib.Path(case.mktemp())
    file.write_text(content)
    return configured(gathered(file, {})).tls


class SignalTests(SynchronousTestCase):
    """The real server, one process or several."""

    def start(self, content: str, *options: object, listen: bool = True) -> Server:
        self.file = temporary_directory(self) / "storescp.yaml"
        self.file.write_text(content)
        return Server(self, "--config", self.file, *options, listen=listen)

    def reload(self, server: Server, content: str, says: str = "SIGHUP: settings read again: ") -> None:
        """Have the server read *content*."""
        said = len(re.findall(says, server.output))
        self.file.write_text(content)
        server.send_signal(signal.SIGHUP)
        server.wait_for(says, count=said + 1)

    def ask(
        self, server: Server, calling: str = "RAW", called: str = "STORESCP"
    ) -> AAssociateAC | AAssociateRJ | None:
        """What is answered to who asks for CT and MR, and releases an association that is accepted."""
        with RawSCU(server.address) as scu:
            answer = scu.associate(((CT, EXPLICIT), (MR, EXPLICIT)), calling=calling, called=called)
            if isinstance(answer, AAssociateAC):
                scu.release()
        return answer

    def results(self, server: Server) -> list[int]:
        """Those of presentation contexts for CT and MR."""
        answer = self.ask(server)
        assert isinstance(answer, AAssociateAC), answer
        return [context.result for context in answer.presentation_contexts]

    @contextlib.contextmanager
    def load(self, server: Server) -> Iterator[list[object]]:
        """Senders that store without a pause, on one association each, and one with an association for each image.

        Gives the statuses, and whatever went wrong.
        """
        statuses: list[object] = []
        self.progress = threading.Semaphore(0)
        enough = threading.Event()

        def send(sender: int, each: int) -> None:
            number = 0
            while not enough.is_set():
                with RawSCU(server.address) as scu:
                    answer = scu.associate(calling=f"LOAD{sender}")
                    if not isinstance(answer, AAssociateAC):
                        statuses.append(answer)
                        return
                    for _ in range(each):
                        number += 1
                        uid = f"1.2.{sender}.{number}"
                        statuses.append(scu.store(uid, instance(uid, pixels=bytes(30_000))))
                        self.progress.release()
                        if enough.is_set():
                            break
                    scu.release()

        senders = [
            threading.Thread(target=send, args=(sender, each))
            for sender, each in enumerate((1_000_000, 1_000_000, 1))
        ]
        for sender in senders:
            sender.start()
        try:
            yield statuses
        finally:
            enough.set()
            for sender in senders:
                sender.join(DEADLINE)
            self.assertFalse(any(sender.is_alive() for sender in senders))

    def test_worker_that_is_replaced(self) -> None:
        """A worker that starts after the reload has the new settings too."""
        server = self.start("", "--workers", 2)
        self.assertEqual(self.results(server), [0, 0])
        self.reload(server, "accept: MR")
        os.kill(workers_of(server)[0], signal.SIGKILL)
        server.wait_for("worker 0 is ready again")
        self.assertEqual([self.results(server) for _ in range(4)], [[3, 0]] * 4)

    def go_on(self) -> None:
        """Wait until the senders have stored some more."""
        while self.progress.acquire(blocking=False):
            pass
        for _ in range(5):
            self.assertTrue(self.progress.acquire(timeout=DEADLINE))

    def check_under_load(self, *options: object) -> None:
        server = self.start("max-pdu: 16384", *options)
        with self.load(server) as statuses, RawSCU(server.address) as old:
            first = old.associate(calling="OLD")
            assert isinstance(first, AAssociateAC)
            self.assertEqual(first.user_information.maximum_length, 16384)
            self.assertEqual(self.results(server), [0, 0])

            self.go_on()
            self.reload(server, "max-pdu: 32768\naccept: CT")
            self.assertEqual(self.results(server), [0, 3])
            answer = self.ask(server)
            assert isinstance(answer, AAssociateAC)
            self.assertEqual(answer.user_information.maximum_length, 32768)

            self.go_on()
            self.reload(server, "ae-title: NEW\ncheck-called-ae: true\ncallers: {'LOAD*': {called: any}}")
            self.assertEqual(self.ask(server), CALLED_AE_TITLE_NOT_RECOGNIZED)
            self.assertIsInstance(self.ask(server, called="NEW"), AAssociateAC)

            self.go_on()
            self.reload(server, "max-assoc: four", "SIGHUP: nothing has changed: .*")
            server.wait_for(f"{self.file}:1: max-assoc: expected a whole number from 1 to 65535, got 'four'")
            self.assertEqual(self.ask(server), CALLED_AE_TITLE_NOT_RECOGNIZED)

            self.go_on()
            self.reload(server, "port: 104\nsync: never\nmax-assoc: 20")
            server.wait_for(f"SIGHUP: needs a restart: sync: always -> never \\({self.file}:2\\)")
            self.assertEqual(self.results(server), [0, 0])

            self.go_on()
            self.assertEqual(old.store("1.2.9", instance("1.2.9")), 0)  # as it was admitted, all the time
            old.release()
        self.assertEqual(set(statuses), {0})
        farewell = server.stop()
        self.assertEqual((farewell["stored"], farewell["failed"]), (len(statuses) + 1, 0))
        self.assertEqual((farewell["aborted"], farewell["rejected"]), (0, 2))
        self.assertEqual(len(server.files()), len(statuses) + 1)

    def test_under_load(self) -> None:
        """Several reloads under load drop nothing and fail nothing; whoever comes next finds the new settings."""
        self.check_under_load()

    def test_workers_under_load(self) -> None:
        """So it is with several processes."""
        self.check_under_load("--workers", 2)

    def test_dcmtk(self) -> None:
        """storescu finds a new AE title, a class that is taken no more, and what is done with a duplicate."""
        server = self.start("ae-title: ONE\ncheck-called-ae: true", "--timeout", 77)
        file = DATA / "CT_small.dcm"

        def send(called: str) -> int:
            return run("storescu", "-aec", called, *server.address, file).returncode

        self.assertEqual(send("ONE"), 0)
        self.reload(server, "ae-title: TWO\ncheck-called-ae: true\nduplicate: ignore\ntimeout: 5")
        self.assertNotEqual(send("ONE"), 0)
        self.assertEqual(send("TWO"), 0)
        self.assertNotIn("timeout: 5", server.output)  # the command line says otherwise
        self.reload(server, "accept: MR\nlog-level: error")
        accepted = server.output.count("association accepted")
        self.assertNotEqual(send("TWO"), 0)
        self.reload(server, "accept: MR")
        self.assertEqual(server.output.count("association accepted"), accepted)
        server.wait_for("SIGHUP: log-level: error -> info")
        self.assertEqual(server.stop()["stored"], 2)

    def test_users(self) -> None:
        """Who comes next is checked by what the new settings say, with all processes; a broken key changes nothing."""
        for options in ((), ("--workers", 2)):
            server = self.start("auth: memory:alice:sesame1\nauth-required: true", *options)
            self.assertEqual(
                self.let_in(server, b"alice", b"sesame1", b"sesame2", None), [True, False, False]
            )
            self.reload(server, "auth: memory:alice:sesame2")
            self.assertEqual(self.let_in(server, b"alice", b"sesame1", b"sesame2", None), [False, True, True])
            self.reload(server, "jwt-key: /nowhere", "SIGHUP: nothing has changed: .*")
            server.wait_for(f"SIGHUP: nothing has changed: {self.file}:1: jwt-key: expected a readable file")
            self.assertEqual(self.let_in(server, b"alice", b"sesame1", b"sesame2", None), [False, True, True])
            self.reload(server, "")
            self.assertEqual(self.let_in(server, b"alice", b"sesame1"), [True])  # nobody looks at users
            server.stop()
            self.assertNotIn("sesame", server.output)

    def let_in(self, server: Server, name: bytes, *passcodes: bytes | None) -> list[bool]:
        """Whether the user gets an association with each of the passcodes, or, for None, nobody does."""
        found = []
        for passcode in passcodes:
            try:
                SCU(
                    *server.address,
                    [(CT, EXPLICIT)],
                    calling_ae_title="SCU",
                    called_ae_title="ANY",
                    timeout=DEADLINE,
                    user=UserIdentity(2, name, passcode) if passcode is not None else None,
                ).release()
                found.append(True)
            except AssociationError as error:
                self.assertIn("rejected", str(error))
                found.append(False)
        return found

    def test_tls(self) -> None:
        """TLS follows its settings, with all processes; to do without it, or without its files, it does not follow."""
        home = temporary_directory(self)
        certificate, key = Authority(home).issue("server")
        rest = f"tls-certificate: {certificate}\ntls-key: {key}\ntls-client-cert: none\n"
        for options in ((), ("--workers", 2)):
            server = self.start(rest, "--listen", "tls:0:interface=127.0.0.1", *options, listen=False)

            def versions(server: Server) -> list[bool]:
                return [bool(s_client(server, version)) for version in ("-tls1_2", "-tls1_3")]

            self.assertEqual(versions(server), [True, True])
            self.reload(server, rest + "tls-profile: tls13")
            self.assertEqual(versions(server), [False, True])
            self.reload(server, f"{rest}tls-crl: {key}", "SIGHUP: nothing has changed: .*")
            server.wait_for(f"{self.file}:4: tls-crl: expected revocation lists in PEM, got '{key}'")
            self.reload(server, rest.replace("none", "require"), "SIGHUP: nothing has changed: --listen: ")
            self.assertEqual(versions(server), [False, True])
            self.reload(server, rest)
            self.assertEqual(versions(server), [True, True])
            server.stop()

    def test_limits(self) -> None:
        """Limits hold for who comes; a rule's associations count by its name, wherever it stands."""
        rules = "callers: {A: {max-assoc: 1}, B: {max-assoc: 1}}"
        for options in ((), ("--workers", 2)):
            server = self.start(rules, *options)
            with RawSCU(server.address) as scu:
                self.assertIsInstance(scu.associate(calling="A"), AAssociateAC)
                self.reload(server, "callers: {B: {max-assoc: 1}, A: {max-assoc: 1}}")
                self.assertEqual(self.ask(server, calling="A"), LOCAL_LIMIT_EXCEEDED)
                self.assertIsInstance(self.ask(server, calling="B"), AAssociateAC)
                self.reload(server, rules + "\nmax-assoc: 1")
                self.assertEqual(self.ask(server, calling="B"), LOCAL_LIMIT_EXCEEDED)
                self.reload(server, rules + "\nmax-assoc: 2")
                self.assertIsInstance(self.ask(server, calling="B"), AAssociateAC)
                scu.release()
            self.assertIsInstance(self.ask(server, calling="A"), AAssociateAC)
            server.stop()
