"""What docs/conformance.rst says, beside the code and beside what a real server answers."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable, Iterator

from pydicom._uid_dict import UID_dictionary
from twisted.trial.unittest import SynchronousTestCase

from storescp.config import OPTIONS
from storescp.extended_negotiation import (
    STORAGE_SERVICE_CLASS,
    CommonExtendedNegotiation,
    ExtendedNegotiation,
    RoleSelection,
)
from storescp.pdu import AAssociateAC, AAssociateRQ, PresentationContext, UserInformation
from storescp.sop_classes import STORAGE_SOP_CLASSES, TRANSFER_SYNTAXES, VERIFICATION
from tests.raw_scu import CT, EXPLICIT, RawSCU
from tests.server import ROOT, Server, environment, run

DOCUMENT = (ROOT / "docs" / "conformance.rst").read_text()


def rows(section: str) -> list[list[str]]:
    """The cells of a table of the document, without its head."""
    text = re.search(rf"^\.\. generated: {section}\n((?:.*\n)*?)\.\. end of {section}\n", DOCUMENT, re.M)
    assert text is not None, section
    rule, _, _, *lines, _ = text[1].strip().splitlines()
    starts = [match.start() for match in re.finditer(r"=+", rule)]
    ends = [*starts[1:], None]
    return [[line[start:end].strip() for start, end in zip(starts, ends, strict=True)] for line in lines]


def uids(section: str) -> set[str]:
    """The UIDs that a table of the document has, in its second column."""
    return {row[1] for row in rows(section)}


def batches(contexts: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    """As many as fit into one association."""
    left = sorted(contexts)
    while left:
        yield left[:128]
        del left[:128]


class DocumentTests(SynchronousTestCase):
    """The document and the code."""

    def test_is_generated(self) -> None:
        """The lists are what tools/conformance.py makes of the code."""
        done = subprocess.run(
            [sys.executable, ROOT / "tools" / "conformance.py", "--check"],
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, "", ""))

    def test_options(self) -> None:
        """The options that it names exist."""
        self.assertLessEqual(set(re.findall(r"``--([a-z-]+)", DOCUMENT)), {option.name for option in OPTIONS})

    def test_files(self) -> None:
        """The files that it refers to are there."""
        for name in re.findall(r"``((?:docs|tools)/\S+|README.rst)``", DOCUMENT):
            self.assertTrue((ROOT / name).is_file(), name)


class AssociationTests(SynchronousTestCase):
    """The document and the real server, without any options."""

    def results(self, server: Server, contexts: Iterable[tuple[str, str]]) -> dict[tuple[str, str], int]:
        """What the server says to these contexts, on as many associations as it takes."""
        found: dict[tuple[str, str], int] = {}
        for batch in batches(contexts):
            with RawSCU(server.address) as scu:
                answer = scu.associate(batch)
                assert isinstance(answer, AAssociateAC)
                results = [context.result for context in answer.presentation_contexts]
                found.update(zip(batch, results, strict=True))
                scu.release()
        return found

    def test_contexts(self) -> None:
        """The SOP classes and transfer syntaxes of the document are accepted, each; all others that the standard lists,
        of queries, retrieval, worklists, performed procedures, are refused with 3, and 4.
        """
        server = Server(self)
        classes, syntaxes = uids("SOP classes"), uids("transfer syntaxes")
        services = uids("services") - {STORAGE_SERVICE_CLASS}
        self.assertIn(VERIFICATION, services)
        self.assertGreater(len(classes), 150)
        self.assertGreater(len(syntaxes), 50)
        others = {uid for uid, row in UID_dictionary.items() if row[1] in ("SOP Class", "Meta SOP Class")}
        others -= classes | services | STORAGE_SOP_CLASSES.keys()
        self.assertLessEqual(uids("refused"), others)
        no_syntaxes = {uid for uid, row in UID_dictionary.items() if row[1] == "Transfer Syntax"}
        no_syntaxes -= syntaxes | TRANSFER_SYNTAXES.keys()
        for pairs, expected in (
            ({(uid, EXPLICIT) for uid in classes | services}, 0),
            ({(CT, uid) for uid in syntaxes}, 0),
            ({(uid, EXPLICIT) for uid in others}, 3),
            ({(CT, uid) for uid in (*no_syntaxes, "1.2.3")}, 4),
        ):
            self.assertEqual(set(self.results(server, pairs).values()), {expected})
        # The same as a query meets it.
        said = run("findscu", "-v", "-S", "-k", "QueryRetrieveLevel=STUDY", *server.address)
        self.assertIn("No Acceptable Presentation Contexts", said.stdout)

    def test_items(self) -> None:
        """The items of the user information that are answered are those of the document, with what it says."""
        server = Server(self)
        proposed = (
            (0x53, b"\0\2\0\2"),
            RoleSelection(CT, scu=True, scp=True).item,
            ExtendedNegotiation(CT, bytes((3, 0, 0, 0, 2))).item,
            CommonExtendedNegotiation(CT, STORAGE_SERVICE_CLASS).item,
        )
        request = AAssociateRQ(
            "STORESCP",
            "RAW",
            (PresentationContext(1, CT, (EXPLICIT,)),),
            UserInformation(16384, "1.2.3", "RAW", proposed),
        )
        with RawSCU(server.address) as scu:
            scu.send(request.encode())
            answer = scu.receive()
            assert isinstance(answer, AAssociateAC)
            scu.release()
        # Cut up independently of the package.
        encoded, found = answer.user_information.encode()[4:], {}
        while encoded:
            end = 4 + int.from_bytes(encoded[2:4], "big")
            found[f"{encoded[0]:02X}H"] = encoded[4:end]
            encoded = encoded[end:]
        self.assertEqual(set(found), {item for item, _, answered in rows("items") if answered == "yes"})
        uid = b"\0\x19" + CT.encode()
        self.assertEqual(found["54H"], uid + b"\1\0")
        self.assertEqual(found["56H"], uid + b"\2\0\3\0\0")
        said = {row[0]: row[1] for row in rows("parameters")}
        self.assertEqual(found["52H"].decode(), said["Implementation Class UID"])
        self.assertEqual(found["55H"].decode(), said["Implementation Version Name"])
        self.assertEqual(
            str(int.from_bytes(found["51H"], "big")), said["Maximum PDU Length"].partition(";")[0]
        )
