"""storescp.sop_classes: what can be stored, by which names, in which transfer syntaxes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Set

import pydicom
import pydicom.uid
from hypothesis import given
from hypothesis import strategies as st
from pydicom._uid_dict import UID_dictionary
from twisted.trial.unittest import SynchronousTestCase

from storescp.sop_classes import (
    DEFLATED_TRANSFER_SYNTAXES,
    MODALITY_GROUPS,
    STORAGE_SOP_CLASSES,
    TRANSFER_SYNTAXES,
    VERIFICATION,
    modality_group,
    resolve_sop_classes,
    resolve_transfer_syntaxes,
)
from tests.strategies import steady

ROOT = "1.2.840.10008.5.1.4.1.1."

# Group -> members by the ends of their UIDs: written down by hand from PS3.4 Table B.5-1 and B.6-1.
PINNED = {
    "CT": "2 2.1 2.2",
    "MR": "4 4.1 4.2 4.3 4.4",
    "US": "3 3.1 6 6.1 6.2 6.3",
    "CR": "1",
    "DX": "1.1 1.1.1 13.1.2",
    "MG": "1.2 1.2.1 13.1.3 13.1.4 13.1.5",
    "IO": "1.3 1.3.1",
    "XR": "12.1 12.1.1 12.2 12.2.1 12.3 13.1.1",
    "XA": "12.1 12.1.1 12.3 13.1.1",
    "RF": "12.2 12.2.1",
    "IVOCT": "14.1 14.2",
    "NM": "5 20",
    "PT": "128 128.1 129 130",
    "SC": "7 7.1 7.2 7.3 7.4",
    "ECG": "9.1.1 9.1.2 9.1.3 9.1.4",
    "PR": "11.1 11.2 11.3 11.4 11.5 11.6 11.7 11.8 11.9 11.10 11.11 11.12",
    "SEG": "66.4 66.5",
    "REG": "66.1 66.3",
    "KO": "88.59",
    "DOC": "104.1 104.2 104.3 104.4 104.5",
    "SM": "77.1.3 77.1.6",
    "XC": "77.1.4 77.1.4.1",
    "ES": "77.1.1 77.1.1.1",
    "OPT": "77.1.5.4 77.1.5.7 77.1.5.8",
}

# In no group, as they are of no one modality: derived from any, retired helpers of any, or not of medicine.
IN_NO_GROUP = {
    "RawDataStorage",
    "ParametricMapStorage",
    "TractographyResultsStorage",
    "BasicStructuredDisplayStorage",
    "StandaloneOverlayStorage",
    "StandaloneCurveStorage",
    "StandaloneModalityLUTStorage",
    "StandaloneVOILUTStorage",
    "DICOSCTImageStorage",
    "DICOSDigitalXRayImageStorageForPresentation",
    "DICOSDigitalXRayImageStorageForProcessing",
    "DICOSThreatDetectionReportStorage",
    "DICOS2DAITStorage",
    "DICOS3DAITStorage",
    "DICOSQuadrupoleResonanceStorage",
    "EddyCurrentImageStorage",
    "EddyCurrentMultiFrameImageStorage",
}


def python(script: str) -> subprocess.CompletedProcess[str]:
    """Run it in an interpreter of its own."""
    return subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )


class StorageSOPClassTests(SynchronousTestCase):
    """STORAGE_SOP_CLASSES and MODALITY_GROUPS."""

    def assertSame(self, derived: Set[str], expected: Set[str], message: str | None = None) -> None:
        """Equal; or, with the dictionary of a later edition of the standard, at least not less."""
        if pydicom.__dicom_version__ == "2024c":
            self.assertEqual(derived, expected, message)
        self.assertLessEqual(expected, derived, message)

    def test_every_storage_class_of_the_dictionary(self) -> None:
        """All SOP classes with "Storage" in their registered name are there, but for those of other services."""
        others = {uid for uid, row in UID_dictionary.items() if row[1] == "SOP Class" and "Storage" in row[0]}
        others -= STORAGE_SOP_CLASSES.keys()
        self.assertEqual(
            {UID_dictionary[uid][4] for uid in others},
            {
                "MediaStorageDirectoryStorage",
                "StorageCommitmentPushModel",
                "StorageCommitmentPullModel",
                # PS3.4 Table GG.3-1
                "HangingProtocolStorage",
                "ColorPaletteStorage",
                "GenericImplantTemplateStorage",
                "ImplantAssemblyTemplateStorage",
                "ImplantTemplateGroupStorage",
                "CTDefinedProcedureProtocolStorage",
                "XADefinedProcedureProtocolStorage",
                "ProtocolApprovalStorage",
                "InventoryStorage",
            },
        )

    def test_only_storage_classes(self) -> None:
        """Each is a SOP class with the dictionary's name, and Verification is not among them."""
        for uid, name in STORAGE_SOP_CLASSES.items():
            self.assertEqual((pydicom.uid.UID(uid).type, pydicom.uid.UID(uid).name), ("SOP Class", name))
            self.assertIn("Storage", name)
        self.assertNotIn(VERIFICATION, STORAGE_SOP_CLASSES)
        self.assertEqual(pydicom.uid.UID(VERIFICATION).keyword, "Verification")

    def test_pinned_groups(self) -> None:
        """The families of the common modalities are exactly the standard's, to the last variant."""
        for group, ends in PINNED.items():
            self.assertSame(MODALITY_GROUPS[group], {ROOT + end for end in ends.split()}, group)

    def test_wide_groups(self) -> None:
        """SR, OP, RT, VL and WAVEFORM hold their arcs of the UID tree, less what is of another kind."""

        def arc(*starts: str) -> set[str]:
            return {
                uid for uid in STORAGE_SOP_CLASSES if uid.startswith(tuple(ROOT + start for start in starts))
            }

        groups = MODALITY_GROUPS
        reports = {ROOT + "78.6", ROOT + "79.1"}  # of an eye, but documents of template-driven content
        self.assertSame(groups["SR"], arc("88.") - groups["KO"] | reports)
        self.assertSame(groups["OP"], arc("77.1.5.", "78.", "79.", "80.", "81.", "82."))
        self.assertSame(groups["VL"], arc("77.") - groups["OP"])
        self.assertSame(groups["WAVEFORM"], arc("9.1", "9.2", "9.3", "9.4", "9.5", "9.6", "9.7", "9.8"))
        delivery = {f"1.2.840.10008.5.1.4.34.{end}" for end in (1, 7, 10)}
        self.assertSame(groups["RT"], arc("481.") | delivery)
        for narrow, wide in (
            ("RTIMAGE", "RT"),
            ("RTRECORD", "RT"),
            ("EEG", "WAVEFORM"),
            ("XA", "XR"),
            ("M3D", "DOC"),
        ):
            self.assertLess(groups[narrow], groups[wide])

    def test_members_are_storage_classes(self) -> None:
        """No group is empty and none holds what is no storage SOP class."""
        for group, members in MODALITY_GROUPS.items():
            self.assertTrue(members, group)
            self.assertLessEqual(members, STORAGE_SOP_CLASSES.keys(), group)

    def test_who_is_in_no_group(self) -> None:
        """All storage classes are in some group, but for a short list with reasons."""
        grouped = frozenset().union(*MODALITY_GROUPS.values())
        left_out = {UID_dictionary[uid][4] for uid in STORAGE_SOP_CLASSES.keys() - grouped}
        self.assertSame(left_out, IN_NO_GROUP)
        self.assertGreater(len(grouped), 0.9 * len(STORAGE_SOP_CLASSES))

    def test_modality_group(self) -> None:
        """A log line calls a class by its narrowest group; other classes have none."""
        for end, group in (
            ("2.1", "CT"),
            ("12.1", "XA"),
            ("12.2", "RF"),
            ("481.5", "RTPLAN"),
            ("481.12", "RT"),
        ):
            self.assertEqual(modality_group(ROOT + end), group)
        self.assertEqual(modality_group(ROOT + "9.1.1"), "ECG")
        self.assertEqual(modality_group(ROOT + "78.6"), "SR")
        for uid in (ROOT + "66", VERIFICATION, "1.2.3", ""):
            self.assertIsNone(modality_group(uid))

    def test_import_without_twisted(self) -> None:
        """Importing the module brings in no Twisted, and of pydicom only a table."""
        script = (
            "import sys, storescp.sop_classes; names = {name.split('.')[0] for name in sys.modules}; "
            "print(names & {'twisted', 'numpy', 'pydicom', 'yaml'})"
        )
        ran = python(script)
        self.assertEqual((ran.stdout.strip(), ran.stderr), ("set()", ""))


class TransferSyntaxTests(SynchronousTestCase):
    """TRANSFER_SYNTAXES."""

    def test_all_but_those_without_data_elements(self) -> None:
        """All registered transfer syntaxes are there, but for MIME, XML and Papyrus."""
        # In an interpreter of its own: pynetdicom, where something has imported it, adds to pydicom's dictionary.
        script = (
            "from pydicom._uid_dict import UID_dictionary\n"
            "from pydicom.uid import AllTransferSyntaxes\n"
            "from storescp.sop_classes import TRANSFER_SYNTAXES\n"
            "registered = {uid for uid, row in UID_dictionary.items() if row[1] == 'Transfer Syntax'}\n"
            "registered.add('1.2.840.10008.1.2.8.1')\n"  # newer than pydicom's dictionary
            "print(*sorted(registered - TRANSFER_SYNTAXES.keys()))\n"
            "print(*TRANSFER_SYNTAXES.keys() - registered, *set(AllTransferSyntaxes) - TRANSFER_SYNTAXES.keys())\n"
        )
        ran = python(script)
        self.assertEqual(
            (ran.stdout, ran.stderr),
            ("1.2.840.10008.1.2.6.1 1.2.840.10008.1.2.6.2 1.2.840.10008.1.20\n\n", ""),
        )

    def test_deflated(self) -> None:
        """Those with "Deflate" in their name are deflated as a whole, but for the one that deflates frames."""
        deflated = {
            uid for uid, name in TRANSFER_SYNTAXES.items() if "Deflate" in name and "Frame" not in name
        }
        self.assertEqual(DEFLATED_TRANSFER_SYNTAXES, deflated)


class ResolveTests(SynchronousTestCase):
    """resolve_sop_classes() and resolve_transfer_syntaxes()."""

    def test_names_of_every_kind(self) -> None:
        """Groups and keywords in any case, UIDs and "all" give the union of what they name."""
        self.assertEqual(
            resolve_sop_classes(["ct", "RAWDATASTORAGE", ROOT + "128", "Ko"]),
            {ROOT + end for end in ("2", "2.1", "2.2", "66", "128", "88.59")},
        )
        for name in ("all", "ALL"):
            self.assertEqual(resolve_sop_classes(["CT", name]), STORAGE_SOP_CLASSES.keys())
        self.assertEqual(resolve_sop_classes([]), frozenset())

    def test_each_keyword_and_uid(self) -> None:
        """Every storage class and transfer syntax answers to its keyword and to its UID."""
        for uid in STORAGE_SOP_CLASSES:
            for name in (uid, pydicom.uid.UID(uid).keyword):
                self.assertEqual(resolve_sop_classes([name]), {uid})
        for uid in TRANSFER_SYNTAXES:
            # The one that is newer than pydicom's dictionary has no keyword there.
            for name in (uid, pydicom.uid.UID(uid).keyword or "DeflatedImageFrameCompression"):
                self.assertEqual(resolve_transfer_syntaxes([name]), (uid,))

    def test_private_sop_class(self) -> None:
        """A proper UID outside the standard's root is a private SOP class; inside it must be known."""
        self.assertEqual(resolve_sop_classes(["1.3.12.2.1107.5.9.1"]), {"1.3.12.2.1107.5.9.1"})
        unknown = [
            "1.2.840.10008",
            ROOT + "2.9",
            VERIFICATION,
            "1.3.12.",
            "1.03.12",
            "3.1.2",
            "1.2." + "3" * 61,
            "1.2.3\n",
        ]
        for name in unknown:
            self.assertRaises(ValueError, resolve_sop_classes, [name])

    def test_unknown_sop_class(self) -> None:
        """An unknown name is named in one line, with the nearest known one as the standard spells it."""
        for name, nearest in (
            ("CTT", "CT"),
            ("ctimagestorag", "CTImageStorage"),
            (ROOT + "481.55", ROOT + "481.5"),
            ("al", "all"),
        ):
            message = str(self.assertRaises(ValueError, resolve_sop_classes, ["CT", name, "nonsense"]))
            self.assertIn(f"got {name!r} (nearest known: {nearest})", message)
        message = str(self.assertRaises(ValueError, resolve_sop_classes, ["??"]))
        self.assertTrue(message.endswith("got '??'"), message)

    def test_transfer_syntaxes_in_order(self) -> None:
        """The order given is kept and repetitions are dropped."""
        names = ["RLELossless", "1.2.840.10008.1.2.4.90", "rlelossless", "ImplicitVRLittleEndian"]
        self.assertEqual(
            resolve_transfer_syntaxes(names),
            ("1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2"),
        )

    def test_unknown_transfer_syntax(self) -> None:
        """An unknown one, or one that carries no data set, is named in one line, with the nearest known."""
        message = str(self.assertRaises(ValueError, resolve_transfer_syntaxes, ["JPEG2000Losless"]))
        self.assertIn("got 'JPEG2000Losless' (nearest known: JPEG2000Lossless)", message)
        for name in ("XMLEncoding", ROOT + "2", "1.2.3", ""):
            self.assertRaises(ValueError, resolve_transfer_syntaxes, [name])

    @steady
    @given(st.lists(st.text()))
    def test_anything_else_is_one_line(self, names: list[str]) -> None:
        """Any text is either known or a ValueError of one line and bounded length."""
        for resolve in (resolve_sop_classes, resolve_transfer_syntaxes):
            try:
                resolve(names)
            except ValueError as error:
                self.assertEqual(len(str(error).splitlines()), 1)
                self.assertLess(len(str(error)), 300)
