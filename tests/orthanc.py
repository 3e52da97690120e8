"""Orthanc as a sender: it stores what it gets by its REST interface, when that asks for it."""

from __future__ import annotations

import json
import pathlib
import shutil
import subprocess
import urllib.request
from collections.abc import Mapping
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.server import DEADLINE, environment, free_port, temporary_directory


class Orthanc:
    """An Orthanc that has started, and ends with the test.

    It knows the servers *modalities*, by name; other *settings* are those of its configuration.
    """

    def __init__(
        self, case: SynchronousTestCase, modalities: Mapping[str, Mapping[str, object]], **settings: object
    ) -> None:
        self._case = case
        self._port = free_port()
        home = temporary_directory(case)
        settings = {
            "StorageDirectory": str(home / "db"),
            "IndexDirectory": str(home / "db"),
            "HttpPort": self._port,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "Plugins": [],
            "DicomAssociationCloseDelay": 0,
            "DicomModalities": modalities,
            **settings,
        }
        (home / "orthanc.json").write_text(json.dumps(settings))
        paths = environment() | {"TCP_NODELAY": "1"}  # or it waits 40 ms for each answer
        program = shutil.which("Orthanc", path=f"{paths['PATH']}:/usr/sbin:/usr/bin")
        assert program is not None, "Orthanc is not installed"
        self._process = subprocess.Popen(
            [program, home / "orthanc.json"],
            cwd=home,
            env=paths,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        case.addCleanup(self._process.communicate, timeout=DEADLINE)
        case.addCleanup(self._process.terminate)
        assert self._process.stderr is not None
        said = ""
        for line in self._process.stderr:
            said += line
            if "Orthanc has started" in line:
                return
        case.fail(said)

    def rest(self, path: str, data: bytes | None = None) -> dict[str, Any]:
        """What its REST interface answers."""
        request = urllib.request.Request(f"http://127.0.0.1:{self._port}/{path}", data)
        with urllib.request.urlopen(request, timeout=DEADLINE) as answer:
            content: dict[str, Any] = json.load(answer)
        return content

    def store(self, modality: str, *paths: pathlib.Path) -> None:
        """Give it these files, and have it send them."""
        instances = [self.rest("instances", path.read_bytes())["ID"] for path in paths]
        answer = self.rest(f"modalities/{modality}/store", json.dumps(instances).encode())
        self._case.assertEqual((answer["InstancesCount"], answer["FailedInstancesCount"]), (len(paths), 0))

    def ask(self, modality: str, *instances: tuple[str, str]) -> str:
        """Have it ask for the storage commitment of instances, SOP classes and UIDs; its name for the transaction."""
        asked = json.dumps({"DicomInstances": instances})
        transaction: str = self.rest(f"modalities/{modality}/storage-commitment", asked.encode())["ID"]
        return transaction
