"""The real server and instances that are not what they should be. See tests.test_hostile_peers."""

from __future__ import annotations

import random
import struct
import zlib

from storescp.pdu import AAssociateRJ
from storescp.sop_classes import VERIFICATION
from tests.raw_scu import (
    DEFLATED_CONTEXT,
    ECHO_CONTEXT,
    EXPLICIT,
    EXPLICIT_CONTEXT,
    IMPLICIT_CONTEXT,
    element,
    implicit,
    instance,
    store,
    store_command,
)
from tests.test_hostile_peers import (
    BY_USER,
    CANNOT_UNDERSTAND,
    DATA_SET_DOES_NOT_MATCH,
    MEGABYTE,
    SOP_CLASS_NOT_SUPPORTED,
    SUCCESS,
    UNRECOGNIZED_OPERATION,
    HostileTestCase,
)


class UIDTests(HostileTestCase):
    """UIDs that would make bad path names, and UIDs that contradict each other."""

    UNSAFE = (
        "../../x",
        "..",
        ".",
        "/etc/passwd",
        "/tmp/storescp-was-here",
        "1.2/3",
        "1.2\\3",
        "1.2\0.3",
        "\0",
        ".storescp",
        "-rf",
        "1.2 3",
        "1.2\n3",
        "1.2\x1b[2J",
        "$(touch x)",
        "9" * 65,
        "9" * 2000,
        "\u00fc",
    )

    def test_unsafe(self) -> None:
        """An unsafe UID in the data set, wherever, gets C000H on an association that lives on."""
        scu = self.associated()
        for uid in self.UNSAFE:
            self.assertEqual(scu.store("1.2.5", instance("1.2.5", study=uid)), CANNOT_UNDERSTAND, uid)
            self.assertEqual(scu.store("1.2.5", instance("1.2.5", series=uid)), CANNOT_UNDERSTAND, uid)
            if uid.isascii():
                self.assertEqual(scu.store(uid, instance(uid)), CANNOT_UNDERSTAND, uid)
        self.assertEqual(scu.store("1.2.5", instance("1.2.5")), SUCCESS)
        self.expect("1.2.5")
        scu.release()

    def test_not_ascii(self) -> None:
        """A SOP Instance UID that is not ASCII makes a command set that cannot be read: an abort by the user."""
        scu = self.associated()
        scu.send_command(store_command(b"1.2.\xff\xfe"))
        self.check_abort(scu, BY_USER)

    def test_only_in_the_command(self) -> None:
        """A UID of the command that is not the data set's gets A900H, however bad it is."""
        scu = self.associated()
        for uid in (*self.UNSAFE, "1.2.6", ""):
            if uid.isascii():
                self.assertEqual(scu.store(uid, instance("1.2.5")), DATA_SET_DOES_NOT_MATCH, uid)
        scu.release()

    def test_sop_class(self) -> None:
        """Another SOP class than the command's: A900H; a command with another one than the context's: 0122H."""
        scu = self.associated()
        mr = "1.2.840.10008.5.1.4.1.1.4"
        self.assertEqual(scu.store("1.2.5", instance("1.2.5", sop_class=mr)), DATA_SET_DOES_NOT_MATCH)
        scu.send_command(store_command("1.2.5", sop_class=mr))
        scu.send_data_set(instance("1.2.5", sop_class=mr))
        self.assertEqual(scu.status(), SOP_CLASS_NOT_SUPPORTED)
        scu.send_command(store_command("1.2.5", sop_class=VERIFICATION), ECHO_CONTEXT)
        scu.send_data_set(instance("1.2.5", sop_class=VERIFICATION), ECHO_CONTEXT)
        self.assertEqual(scu.status(), UNRECOGNIZED_OPERATION)
        scu.release()

    def test_missing(self) -> None:
        """A data set that lacks one of the four UIDs, or has an empty one, or is none: C000H."""
        scu = self.associated()
        for data in (
            instance("1.2.5", sop_class=None),
            instance("1.2.5", sop_instance=""),
            instance("1.2.5", study=None),
            instance("1.2.5", series=None),
            instance("1.2.5", study=""),
            instance("1.2.5", series=" "),
            b"",
        ):
            self.assertEqual(scu.store("1.2.5", data), CANNOT_UNDERSTAND)
        scu.send_command(store_command("1.2.5", data_set=False))
        self.assertEqual(scu.status(), CANNOT_UNDERSTAND)
        scu.release()

    def test_harmless(self) -> None:
        """Breaches of the UID rules that harm nobody are stored: leading zeros, letters, empty components."""
        uids = ["01.002", "1.2.abc", "1..2", "9" * 64, "1.2_3-4"]
        self.assertEqual(
            store(self.server.address, [(uid, instance(uid)) for uid in uids]), [SUCCESS] * len(uids)
        )
        for uid in uids:
            self.expect(uid)


class DataSetTests(HostileTestCase):
    """Data sets that are none."""

    def test_truncated(self) -> None:
        """A data set cut within its head gets C000H, wherever it is cut; behind it, it is stored as sent."""
        scu = self.associated()
        data = instance("1.2.5", patient=element(0x00100010, "PN", "Doe^John"))
        series = data.index(struct.pack("<HH", 0x0020, 0x000E)) + 8 + len("1.2.3.4 ")
        for end in range(1, series):
            self.assertEqual(scu.store("1.2.5", data[:end]), CANNOT_UNDERSTAND, end)
        self.assertEqual(scu.store("1.2.5", data[:series]), SUCCESS)
        self.expect("1.2.5")
        self.assertEqual(scu.store("1.2.6", instance("1.2.6")[:-5]), SUCCESS)
        self.expect("1.2.6")
        scu.release()

    def test_garbage(self) -> None:
        """Random bytes, text, a picture, a whole DICOM file: C000H in every transfer syntax."""
        chance = random.Random(1)
        scu = self.associated()
        file = bytes(128) + b"DICM" + element(0x00020010, "UI", EXPLICIT) + instance("1.2.5")
        for data in (
            *(chance.randbytes(chance.randrange(2, 3000)) for _ in range(100)),
            chance.randbytes(3 * MEGABYTE),
            b"Dear Sir or Madam, " * 500,
            b"\xff\xd8\xff\xe0\x00\x10JFIF" + bytes(1000),
            b"\xff" * 5000,
            bytes(5000),
            file,
            file[132:],
        ):
            for context_id in (EXPLICIT_CONTEXT, IMPLICIT_CONTEXT, DEFLATED_CONTEXT):
                status = scu.store("1.2.5", data, context_id)
                self.assertEqual(status, CANNOT_UNDERSTAND, (context_id, data[:40]))
        scu.release()

    def test_claims_of_4_gib(self) -> None:
        """Elements before and among the UIDs that claim 4 GiB get C000H, and no memory."""
        scu = self.associated()
        huge = 0xFFFFFFFE
        for data in (
            element(0x00080001, "UN", b"", huge) + instance("1.2.5"),
            element(0x00091010, "OB", b"abc", huge),
            instance("1.2.5", patient=element(0x00104000, "UT", b"", huge)),
            element(0x00080006, "SQ", b"", huge),
        ):
            self.assertEqual(scu.store("1.2.5", data), CANNOT_UNDERSTAND)
        for tag in (0x00080005, 0x00080016, 0x00080018, 0x00081111):
            data = implicit(tag, b"1.2", huge) + bytes(100_000)
            self.assertEqual(scu.store("1.2.5", data, IMPLICIT_CONTEXT), CANNOT_UNDERSTAND)
        self.assertEqual(
            scu.store("1.2.5", instance("1.2.5") + element(0x7FE10010, "OB", b"", huge)), SUCCESS
        )
        self.expect("1.2.5")
        scu.release()

    def test_large_elements_before_the_uids(self) -> None:
        """100 MB in front of the UIDs are stored, in bounded memory."""
        scu = self.associated()
        data = instance("1.2.5", first=element(0x00080001, "OB", bytes(100 * MEGABYTE)))
        self.assertEqual(scu.store("1.2.5", data), SUCCESS)
        self.expect("1.2.5")
        scu.release()
        (path,) = (path for name, path in self.server.files().items() if name.endswith("/1.2.5.dcm"))
        self.assertEqual(path.read_bytes()[-len(data) :], data)

    def test_deep_sequences(self) -> None:
        """100,000 nested sequences of undefined length before the UIDs: stored when they end, else C000H."""
        undefined = 0xFFFFFFFF
        level = element(0x00080006, "SQ", b"", undefined) + implicit(0xFFFEE000, b"", undefined)
        ends = implicit(0xFFFEE00D, b"") + implicit(0xFFFEE0DD, b"")
        scu = self.associated()
        nested = level * 100_000 + element(0x00080018, "UI", "../../x") + ends * 100_000
        self.assertEqual(scu.store("1.2.5", instance("1.2.5", first=nested)), SUCCESS)
        self.expect("1.2.5")
        self.assertEqual(scu.store("1.2.6", level * 100_000), CANNOT_UNDERSTAND)
        self.assertEqual(
            scu.store("1.2.6", instance("1.2.6", first=level * 100_000 + ends)), CANNOT_UNDERSTAND
        )
        scu.release()

    def test_sequences(self) -> None:
        """UIDs within sequences in front, of defined length or not, are never taken for the instance's own."""
        undefined = 0xFFFFFFFF
        other = element(0x00080018, "UI", "6.6.6") + element(0x0020000D, "UI", "../..")
        item = implicit(0xFFFEE000, other)
        open_item = implicit(0xFFFEE000, other, undefined) + implicit(0xFFFEE00D, b"")
        unknown = implicit(0xFFFEE000, implicit(0x00080018, "6.6.6"))
        end = implicit(0xFFFEE0DD, b"")
        scu = self.associated()
        for number, first in enumerate(
            (
                element(0x00080006, "SQ", item * 2),
                element(0x00080006, "SQ", open_item * 2),
                element(0x00080006, "SQ", item * 2 + end, undefined),
                element(0x00080006, "SQ", open_item * 2 + end, undefined),
                element(0x00080006, "SQ", b""),
                element(0x00080006, "SQ", end, undefined),
                element(0x00080006, "UN", unknown + end, undefined),
            )
        ):
            uid = f"1.2.5.{number}"
            self.assertEqual(scu.store(uid, instance(uid, first=first)), SUCCESS, number)
            self.expect(uid)
        scu.release()

    def test_deflate_bomb(self) -> None:
        """A deflated data set that swells a thousandfold before its UIDs is given up at a bound: C000H."""
        packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        bomb = [packer.compress(element(0x00080001, "OB", b"", 0x7FFFFFFE))]
        bomb += [packer.compress(bytes(MEGABYTE)) for _ in range(200)]
        data = b"".join((*bomb, packer.flush()))
        self.assertLess(len(data), MEGABYTE)
        scu = self.associated()
        self.assertEqual(scu.store("1.2.5", data, DEFLATED_CONTEXT), CANNOT_UNDERSTAND)
        packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        whole = packer.compress(instance("1.2.5")) + packer.flush()
        self.assertEqual(scu.store("1.2.5", whole[:20], DEFLATED_CONTEXT), CANNOT_UNDERSTAND)
        self.assertEqual(scu.store("1.2.5", whole, DEFLATED_CONTEXT), SUCCESS)
        self.expect("1.2.5")
        scu.release()

    def test_names(self) -> None:
        """Names in any character set, a wrong one and none at all: stored, and in the index as well as can be."""
        names = (
            ("ISO_IR 100", "Müller^Jörg".encode("latin-1"), "Müller^Jörg"),
            ("ISO_IR 192", "Żółć^Łukasz".encode(), "Żółć^Łukasz"),
            ("ISO_IR 144", "Люкceмбypг".encode("iso8859-5"), "Люкceмбypг"),
            ("ISO_IR 166", "สมชาย".encode("iso8859-11"), "สมชาย"),
            ("GB18030", "Wang^XiaoDong=王^小东".encode("gb18030"), "Wang^XiaoDong=王^小东"),
            ("\\ISO 2022 IR 87", b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B", "Yamada^Tarou=山田^太郎"),
            (
                "\\ISO 2022 IR 149",
                b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7",
                "Hong^Gildong=洪^吉洞",
            ),
            ("ISO_IR 192", b"broken \xff\xfe", "broken \ufffd\ufffd"),
            ("NO SUCH SET", b"M\xfcller", None),
            ("rot13", b"Uryyb", "Uryyb"),
            ("", b"\x1b$B;3ED\x1b", None),
            ("", b"a\0b'; DROP TABLE patients; --", None),
        )
        scu = self.associated()
        for number, (charset, name, _) in enumerate(names):
            uid = f"1.2.5.{number}"
            data = instance(
                uid,
                study=f"1.8.{number}",
                first=element(0x00080005, "CS", charset) if charset else b"",
                patient=element(0x00100010, "PN", name) + element(0x00100020, "LO", str(number)),
            )
            self.assertEqual(scu.store(uid, data), SUCCESS, charset)
            self.expect(uid, study=f"1.8.{number}")
        scu.release()
        rows = self.server.rows("SELECT patient_id, patient_name FROM patients WHERE patient_id IS NOT NULL")
        found = {int(str(patient_id)): name for patient_id, name in rows}
        self.assertEqual(set(found), set(range(len(names))))
        for number, (_, _, expected) in enumerate(names):
            if expected is not None:
                self.assertEqual(found[number], expected)

    def test_log_lines(self) -> None:
        """Control characters in names and titles make no lines of their own in the log."""
        scu = self.connect()
        self.assertEqual(scu.associate(calling="X\n2026 FORGED"), AAssociateRJ(1, 1, 3))
        self.assertEqual(self.connect().associate(called="X\n2026 FORGED"), AAssociateRJ(1, 1, 7))
        scu = self.associated()
        data = instance("1.2.5").replace(
            element(0x00080060, "CS", "CT"), element(0x00080060, "CS", "\nFORGED\r")
        )
        self.assertEqual(scu.store("1.2.5", data), SUCCESS)
        self.expect("1.2.5")
        scu.release()
        self.server.wait_for("association released", count=2)
        for line in self.server.output.splitlines():
            self.assertRegex(line, r"^(\d{4}-\d\d-\d\dT\S+ \[|\t)")
