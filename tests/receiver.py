"""A real receiver of syslog for tests: rsyslogd, over UDP, TCP and TLS.

    receiver = Receiver(self)
    Server(self, "--audit", receiver.url("tcp"))
    receiver.message("110104")

It says itself when it is ready, and gives what it has received to a named pipe.
"""

from __future__ import annotations

import os
import pathlib
import re
import select
import shutil
import subprocess
import time
from typing import NamedTuple
from xml.etree import ElementTree

from lxml import etree  # type: ignore[import-untyped]
from twisted.trial.unittest import SynchronousTestCase

from tests.pki import Authority
from tests.server import DEADLINE, free_port, temporary_directory

SCHEMA = etree.RelaxNG(etree.parse(pathlib.Path(__file__).with_name("audit_message.rng")))

_CONFIGURATION = """
global(workDirectory="{home}" maxMessageSize="64k" net.enableDNS="off" processInternalMessages="on"
       defaultNetstreamDriverCAFile="{authority}" defaultNetstreamDriverCertFile="{certificate}"
       defaultNetstreamDriverKeyFile="{key}")
module(load="imudp")
module(load="imtcp")
template(name="line" type="string"
         string="%inputname%|%pri%|%timestamp:::date-rfc3339%|%hostname%|%app-name%|%procid%|%msgid%|%msg%\\n")
input(type="imudp" address="127.0.0.1" port="{udp}" name="udp")
input(type="imtcp" address="127.0.0.1" port="{tcp}" name="tcp")
input(type="imtcp" address="127.0.0.1" port="{tls}" name="tls"
      streamDriver.name="ossl" streamDriver.mode="1" streamDriver.authMode="x509/certvalid")
action(type="ompipe" pipe="{home}/received" template="line")
"""


class Message(NamedTuple):
    """What has arrived."""

    transport: str
    priority: int
    time: str
    host: str
    application: str
    process: str
    message_id: str
    text: str

    @property
    def xml(self) -> ElementTree.Element:
        """The audit message, after it has been found to be one: valid, behind the mark of UTF-8."""
        assert self.text.startswith("\ufeff"), self.text
        content = self.text[1:].encode()
        SCHEMA.assertValid(etree.fromstring(content))
        return ElementTree.fromstring(content)

    @property
    def event(self) -> str:
        """The code of what has happened."""
        return self.code("EventIdentification/EventID")

    def code(self, path: str) -> str:
        """The code at *path*."""
        element = self.xml.find(path)
        assert element is not None, (path, self.text)
        return element.attrib["csd-code"]


class Receiver:
    """rsyslogd. What it shows over TLS, and what it wants to be shown, comes from ``authority``."""

    def __init__(self, case: SynchronousTestCase) -> None:
        self.case = case
        self.home = temporary_directory(case)
        self.authority = Authority(self.home)
        self.certificate, self.key = self.authority.issue("localhost")
        self.ports = {transport: free_port() for transport in ("udp", "tcp", "tls")}
        self.messages: list[Message] = []
        self.start()

    def start(self) -> None:
        """Start it."""
        pipe = self.home / "received"
        subprocess.run(["mkfifo", "-m", "600", pipe], check=True)
        configuration = self.home / "rsyslog.conf"
        configuration.write_text(
            _CONFIGURATION.format(
                home=self.home,
                authority=self.authority.file,
                certificate=self.certificate,
                key=self.key,
                **self.ports,
            )
        )
        program = shutil.which("rsyslogd") or "/usr/sbin/rsyslogd"
        self._said = open(self.home / "said", "ab")  # noqa: SIM115
        self.process = subprocess.Popen(
            [program, "-n", "-f", configuration, "-i", self.home / "pid"],
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            stdout=self._said,
            stderr=self._said,
        )
        self.case.addCleanup(self.stop)
        # Does not wait for the other end, which may have ended for some reason.
        descriptor = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._pipe = open(descriptor, "rb", buffering=0)  # noqa: SIM115
        self._rest = b""
        while self._next().application != "rsyslogd":
            pass

    def stop(self) -> None:
        """End it. Connections to it are lost."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
            self._pipe.close()
            self._said.close()
            (self.home / "received").unlink()

    def url(self, transport: str) -> str:
        """For the option --audit."""
        host = "127.0.0.1" if transport == "udp" else "localhost"
        return f"{transport}://{host}:{self.ports[transport]}"

    def message(self, event: str, count: int = 1) -> Message:
        """Wait until messages of this event have arrived *count* times; the last of those."""
        while True:
            found = [message for message in self.messages if message.event == event]
            if len(found) >= count:
                return found[count - 1]
            self.messages.append(self._next())

    def _next(self) -> Message:
        deadline = time.monotonic() + DEADLINE
        while b"\n" not in self._rest:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._pipe], [], [], left)[0]:
                self.case.fail(f"no message comes: {(self.home / 'said').read_text()}")
            data = self._pipe.read(65536)
            assert data, f"rsyslogd has ended: {(self.home / 'said').read_text()}"
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        fields = re.split(r"\|", line.decode(), maxsplit=7)
        return Message(fields[0], int(fields[1]), *fields[2:])
