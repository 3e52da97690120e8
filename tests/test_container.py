"""etc/Containerfile: the image that it makes, built and used by the commands that it names."""

from __future__ import annotations

import configparser
import json
import pathlib
import re
import shlex
import subprocess

import yaml
from pydicom import dcmread
from pydicom.data import get_testdata_file
from twisted.trial.unittest import SynchronousTestCase

import storescp
from storescp.config import load
from tests.container import Podman, base_archive, pip_variables
from tests.server import ROOT, STOPPED
from tests.test_documents import blocks

TEXT = (ROOT / "etc" / "Containerfile").read_text()
COMMANDS = re.findall(r"^#     (podman .+)$", TEXT, re.MULTILINE)
CT = str(get_testdata_file("CT_small.dcm"))

#: What a container need not have.
LOCKED_IN = ("--read-only", "--read-only-tmpfs=false", "--cap-drop=all", "--security-opt=no-new-privileges")

#: Seconds that no command takes.
LONG = 240


class ContainerTests(SynchronousTestCase):
    """One image, and what it stores in a volume."""

    def do(self, *command: object, status: int = 0, inside: bool = True) -> str:
        """What a command says on stdout, or on stderr if it fails as it should; *inside*: where the ports are."""
        words = list(map(str, command))
        done = subprocess.run(
            self.podman.inside(*words) if inside else words,
            cwd=ROOT,
            env=self.podman.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LONG,
        )
        self.assertEqual(done.returncode, status, f"{words}\n{done.stdout}{done.stderr}")
        return done.stderr if status else done.stdout

    def make(self, *build: str) -> None:
        """Make the image, on a base that has the name of the one that is wanted, whose Python is one of ours."""
        name = re.search(r"^ARG BASE=(\S+:(\d\.\d+)-\S+)$", TEXT, re.MULTILINE)
        assert name is not None
        setup = configparser.ConfigParser()
        setup.read(ROOT / "setup.cfg")
        self.assertIn(f"Programming Language :: Python :: {name[2]}", setup["metadata"]["classifiers"])
        variables = ("PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", *pip_variables())
        changes = [word for variable in variables for word in ("--change", f"ENV {variable}")]
        self.do("podman", "import", *changes, base_archive(self.podman.home / "base.tar"), name[1])
        self.do(*build, inside=False)

    def follow(self, *logs: str) -> subprocess.Popen[str]:
        """Read the log until the server listens."""
        follower = subprocess.Popen(
            self.podman.inside("timeout", LONG, *logs),
            env=self.podman.environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.addCleanup(follower.kill)
        assert follower.stdout is not None
        said = ""
        for line in follower.stdout:
            said += line
            if "listening on" in line:
                return follower
        self.fail(said)

    def end(self, follower: subprocess.Popen[str], *stop: str) -> dict[str, str]:
        """Stop the container, whose exit status must be 0; what the server says of its life."""
        self.do(*stop)
        self.assertEqual(self.do("podman", "wait", stop[-1]), "0\n")
        said = self.do("podman", "logs", stop[-1])  # who follows may not hear the last of it
        self.do("podman", "rm", stop[-1])
        follower.communicate(timeout=LONG)
        self.assertNotIn("plugin cache", said)  # the image has it: nobody may write it now
        found = STOPPED.search(said)
        assert found is not None, said
        return found.groupdict()

    def test_guide(self) -> None:
        """docs/guides/containers.rst begins with the commands of the Containerfile."""
        self.assertEqual(blocks("guides/containers.rst")[0].splitlines(), COMMANDS)

    def test_pod(self) -> None:
        """The pod of the guide has the ports, the volume and the user of the image, and time to stop."""
        guide = (ROOT / "docs" / "guides" / "containers.rst").read_text()
        block = re.search(r"code-block:: yaml\n\n((?:    .*\n|\n)+)", guide)
        assert block is not None
        pod = yaml.safe_load(block[1])["spec"]
        (server,) = pod["containers"]
        config = load(None, {}, {entry["name"]: entry["value"] for entry in server["env"]})
        self.assertEqual(config.http, f"tcp:{server['livenessProbe']['httpGet']['port']}")
        self.assertEqual(
            server["livenessProbe"]["httpGet"]["port"], server["readinessProbe"]["httpGet"]["port"]
        )
        self.assertEqual(config.listen, (f"tcp:{server['ports'][0]['containerPort']}",))
        self.assertGreater(pod["terminationGracePeriodSeconds"], config.stop_timeout)
        self.assertIn(f"\nVOLUME {server['volumeMounts'][0]['mountPath']}\n", TEXT)
        self.assertIn(f"\nUSER 11112:{pod['securityContext']['fsGroup']}\n", TEXT)

    def test_life(self) -> None:
        """It is built, stores on its volume, is healthy, stops in good order; another one goes on, locked in."""
        build, run, logs, stop = map(shlex.split, COMMANDS)
        self.podman = Podman(self)
        self.make(*build)
        (image,) = json.loads(self.do("podman", "image", "inspect", run[-1]))
        self.assertEqual(image["Labels"]["org.opencontainers.image.version"], storescp.__version__)
        self.assertEqual(image["User"], "11112:11112")

        self.do(*run)
        follower = self.follow(*logs)
        self.do("storescu", "localhost", 11112, CT)
        self.do("podman", "healthcheck", "run", "storescp")
        stats = json.loads(self.do("podman", "exec", "storescp", "storescp", "stats", "--json"))
        self.assertEqual(stats["instances"], 1)
        life = self.end(follower, *stop)
        self.assertEqual((life["associations"], life["stored"], life["failed"]), ("2", "1", "0"))

        mounted = pathlib.Path(
            self.do("podman", "volume", "inspect", "-f", "{{.Mountpoint}}", "images").strip()
        )
        (file,) = mounted.glob("received/1.*/*/*.dcm")
        self.assertEqual(file.stat().st_uid, 11112)
        self.assertEqual(dcmread(file).PixelData, dcmread(CT).PixelData)

        # Another port inside, processes, rules: the check follows what the environment says, and needs no rule.
        settings = self.podman.home / "storescp.yaml"
        settings.write_text("port: 4242\nworkers: 2\nreject-unknown-callers: true\ncallers: {CT1: {}}\n")
        mounted_settings = (
            "-v",
            f"{settings}:/etc/storescp.yaml:ro",
            "-e",
            "STORESCP_CONFIG=/etc/storescp.yaml",
        )
        self.do(*run[:-1], "-p", "104:4242", *mounted_settings, *LOCKED_IN, run[-1], "--duplicate", "same")
        follower = self.follow(*logs)
        self.do("podman", "healthcheck", "run", "storescp")
        self.do("storescu", "-aet", "CT1", "localhost", 104, CT)
        life = self.end(follower, *stop)
        self.assertEqual((life["associations"], life["rejected"], life["failed"]), ("1", "1", "0"))
        self.assertEqual(list(mounted.glob("received/1.*/*/*")), [file])
