"""A machine for tests: systemd as PID 1 of a container with this machine's files, under a layer that is thrown away.

    machine = Machine(self)
    machine.run("systemctl", "start", "storescp")
    machine.wait_for("listening on", "storescp")
    with machine.network():
        RawSCU(("127.0.0.1", 11112))

The project is installed in /opt/storescp, nothing else is begun that this machine begins. All mounts are in a namespace
of their own, the network is a loopback, what is written goes into memory: when the test has ended, or has been killed,
nothing is left. It takes root, and systemd-nspawn.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import pathlib
import re
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from twisted.trial.unittest import SynchronousTestCase

from tests.server import DEADLINE, ROOT, temporary_directory
from tests.test_systemd import Listener

#: Where the units' files are for who has installed the project.
SHARE = "/opt/storescp/share/storescp"

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# Ends the machine when its own input ends. All that runs in it is in the control group.
_GUARD = """
mkdir "$GROUP"
echo $$ >"$GROUP/cgroup.procs"
unshare --mount --pid --cgroup --fork --kill-child --mount-proc sh -euc "$BOOT" <&- &
echo $$ >"$GROUP/../cgroup.procs"
read -r _ || :
echo 1 >"$GROUP/cgroup.kill"
wait
while grep -q "populated 1" "$GROUP/cgroup.events"; do :; done
find "$GROUP" -depth -type d -exec rmdir {} +
"""

_BOOT = """
mount -t tmpfs none /run
mkdir /run/packages /run/project /run/scripts
mount -o bind,ro "$PACKAGES" /run/packages
mount -o bind,ro "$PROJECT" /run/project
mount -o bind,ro "$SCRIPTS" /run/scripts
mount -t tmpfs none /tmp
umount -R /sys/fs/cgroup
mount -t cgroup2 none /sys/fs/cgroup

layer() { # NAME LOWER WHERE
    mkdir -p "/run/$1/upper" "/run/$1/work" "$3"
    mount -t overlay -o "lowerdir=$2,upperdir=/run/$1/upper,workdir=/run/$1/work" overlay "$3"
}
root=/run/root
layer machine-layer / $root
cd $root
rm -rf etc/systemd/system/* etc/fstab etc/crypttab
echo 0123456789abcdef0123456789abcdef >etc/machine-id # without one all units would be enabled
printf '[Unit]\\nRequires=basic.target\\nAfter=basic.target\\n' >etc/systemd/system/test.target

# As if the project had never been here; then what pip makes of it.
rm -rf opt/storescp etc/storescp* var/lib/storescp var/log/storescp
sed -i '/^storescp:/d' etc/passwd etc/group etc/shadow etc/gshadow
chroot . "$PYTHON" -m venv --without-pip /opt/storescp
packages=$(echo opt/storescp/lib/python3*/site-packages)
layer packages-layer /run/packages $packages
rm -rf $packages/*storescp* $packages/twisted/plugins/dropin.cache
cp -a /run/project/storescp $packages
cp -a /run/project/twisted/plugins/storescp_plugin.py $packages/twisted/plugins
for program in storescp twistd; do
    sed '1s:.*:#!/opt/storescp/bin/python:' /run/scripts/$program >opt/storescp/bin/$program
    chmod +x opt/storescp/bin/$program
done
mkdir -p ".$SHARE"
cp /run/project/etc/* ".$SHARE"

exec systemd-nspawn --quiet --directory=$root --boot --register=no --keep-unit --machine=storescp-test \\
    --private-network --link-journal=no --console=pipe --notify-ready=yes \\
    --capability=CAP_BPF --system-call-filter=bpf systemd.unit=test.target
"""

_numbers = itertools.count()


def _control_group() -> pathlib.Path:
    """Our own, of version 2."""
    mounts = pathlib.Path("/proc/self/mountinfo").read_text().splitlines()
    (mount, *_) = [line.split()[4] for line in mounts if " - cgroup2 " in line]
    (path,) = re.findall(r"^0::(.*)$", pathlib.Path("/proc/self/cgroup").read_text(), re.MULTILINE)
    return pathlib.Path(mount + path)


def _interpreter() -> str:
    """Python for the machine: the one that runs the tests, or Debian's of the same version, as units see no home."""
    ours = os.path.realpath(sys.executable)
    if not ours.startswith(("/root/", "/home/", "/run/")):
        return ours
    theirs = f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    assert os.path.exists(theirs), f"expected {theirs}, or tests that are run by a Python outside of homes"
    return theirs


class Machine:
    """A machine that has booted; it is gone after the test."""

    def __init__(self, case: SynchronousTestCase) -> None:
        self.case = case
        home = temporary_directory(case)
        self._group = _control_group() / f"storescp-test-{os.getpid()}-{next(_numbers)}"
        address = f"@{self._group.name}"
        listener = Listener(case, address)
        environment = {
            "PATH": _PATH,
            "GROUP": str(self._group),
            "BOOT": _BOOT,
            "PACKAGES": sysconfig.get_path("purelib"),
            "SCRIPTS": sysconfig.get_path("scripts"),
            "PROJECT": str(ROOT),
            "PYTHON": _interpreter(),
            "SHARE": SHARE,
            "NOTIFY_SOCKET": address,
        }
        console = home / "console"
        with open(console, "wb") as output:
            self._guard = subprocess.Popen(
                ["sh", "-euc", _GUARD],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,  # an interrupt is for us
            )
        case.addCleanup(self._end, console)
        try:
            while "READY=1" not in listener.heard():
                pass
        except TimeoutError:
            case.fail(f"the machine has not booted:\n{console.read_text('utf-8', 'replace')}")
        listener.socket.close()  # unread, what systemd goes on to say would soon block it
        processes = self._group / "payload" / "init.scope" / "cgroup.procs"
        self._leader = processes.read_text().split()[0]

    def _end(self, console: pathlib.Path) -> None:
        self._guard.communicate(timeout=DEADLINE)
        self.case.assertEqual(self._guard.returncode, 0, console.read_text("utf-8", "replace"))

    def path(self, path: str) -> pathlib.Path:
        """What is *path* in the machine, as we see it."""
        return pathlib.Path(f"/proc/{self._leader}/root{path}")

    def run(self, *command: str, expected: int = 0, cwd: str = "/", timeout: float = DEADLINE) -> str:
        """Run a program in it as root; what it says. The test fails when its exit status is not *expected*."""
        done = subprocess.run(
            [*("nsenter", "-t", self._leader, "-a"), *("env", "-C", cwd), *command],
            env={"PATH": _PATH, "SYSTEMD_PAGER": "", "SYSTEMD_COLORS": "0"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=timeout,
        )
        if done.returncode != expected and command[0] != "journalctl":
            self.case.fail(f"{command}: {done.returncode}\n{done.stdout}\n{self.journal()}")
        return done.stdout

    def journal(self, *options: str) -> str:
        """The messages of the journal, a line each."""
        self.run("journalctl", "--sync")
        return self.run("journalctl", "--no-pager", "--quiet", "--output=cat", *options)

    def wait_for(self, pattern: str, unit: str, *, count: int = 1) -> re.Match[str]:
        """Wait until *pattern* was found *count* times in the journal of *unit*; the last of those matches."""
        follow = ("journalctl", "--follow", "--lines=all", "--output=cat", f"--unit={unit}")
        with subprocess.Popen(
            [*("nsenter", "-t", self._leader, "-a", "timeout", str(DEADLINE)), *follow],
            env={"PATH": _PATH},
            stdout=subprocess.PIPE,
            text=True,
            errors="replace",
        ) as following:
            assert following.stdout is not None
            for line in following.stdout:
                if match := re.search(pattern, line):
                    count -= 1
                    if not count:
                        following.terminate()
                        return match
        self.case.fail(f"{pattern!r} has not come.\n{self.journal()}")

    def property_of(self, unit: str, name: str) -> str:
        """What systemd knows of a unit."""
        return self.run("systemctl", "show", "--value", f"--property={name}", unit).strip()

    @contextmanager
    def network(self) -> Iterator[None]:
        """Sockets that this thread makes are the machine's."""
        paths = f"/proc/{self._leader}/ns/net", f"/proc/self/task/{threading.get_native_id()}/ns/net"
        theirs, ours = (os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in paths)
        try:
            _set_network(theirs)
            try:
                yield
            finally:
                _set_network(ours)
        finally:
            os.close(theirs)
            os.close(ours)


_CLONE_NEWNET = 0x40000000
_setns = ctypes.CDLL(None, use_errno=True).setns


def _set_network(namespace: int) -> None:
    """setns(2), which os has from Python 3.12 on."""
    if _setns(namespace, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
