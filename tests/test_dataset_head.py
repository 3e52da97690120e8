"""storescp.dataset_head: the same values as pydicom reads, from whole, broken and hostile data sets."""

from __future__ import annotations

import functools
import itertools
import pathlib
import random
import struct
import tracemalloc
import warnings
import zlib
from collections.abc import Iterable
from typing import NamedTuple

import pydicom
import pydicom.data
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydicom.charset import convert_encodings, decode_bytes, encode_string
from pydicom.errors import InvalidDicomError
from twisted.trial.unittest import SynchronousTestCase

from storescp import tags
from storescp.dataset_head import MAX_INFLATED, MAX_VALUE, PIECE, Head, HeadError, HeadReader
from tests.strategies import steady

IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
JPEG = "1.2.840.10008.1.2.4.50"
SYNTAXES = [IMPLICIT, EXPLICIT, BIG_ENDIAN, DEFLATED, JPEG]

UNDEFINED = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
REFERENCED_IMAGE_SEQUENCE = 0x00081140
LONG_VRS = ("OB", "OW", "SQ", "UN", "UT", "UV")
UIDS = (tags.SOP_CLASS_UID, tags.SOP_INSTANCE_UID, tags.STUDY_INSTANCE_UID, tags.SERIES_INSTANCE_UID)


def element(syntax: str, tag: int, vr: str, value: bytes = b"", length: int | None = None) -> bytes:
    """One encoded element; *length* is what it claims, by default the truth."""
    order = ">" if syntax == BIG_ENDIAN else "<"
    group, number = tag >> 16, tag & 0xFFFF
    if length is None:
        length = len(value)
    if syntax == IMPLICIT or group == 0xFFFE:
        return struct.pack(order + "HHI", group, number, length) + value
    if vr in LONG_VRS:
        return struct.pack(order + "HH2sHI", group, number, vr.encode(), 0, length) + value
    return struct.pack(order + "HH2sH", group, number, vr.encode(), length) + value


def elements(syntax: str, between: bytes = b"") -> list[bytes]:
    """The elements of a small data set; *between* stands behind the third of them, before the UIDs of the study."""
    number = struct.Struct(">H" if syntax == BIG_ENDIAN else "<H").pack
    return [
        element(syntax, tags.SPECIFIC_CHARACTER_SET, "CS", b"ISO_IR 100"),
        element(syntax, tags.SOP_CLASS_UID, "UI", b"1.2.840.10008.5.1.4.1.1.2\0"),
        element(syntax, tags.SOP_INSTANCE_UID, "UI", b"1.2.3\0"),
        *([between] if between else []),
        element(syntax, 0x00091001, "UN", b"private "),
        element(syntax, tags.PATIENT_NAME, "PN", b"J\xe9r\xf4me^A"),
        element(syntax, tags.STUDY_INSTANCE_UID, "UI", b"1.2.4\0"),
        element(syntax, tags.SERIES_INSTANCE_UID, "UI", b"1.2.5\0"),
        element(syntax, tags.INSTANCE_NUMBER, "IS", b"-17 "),
        element(syntax, tags.ROWS, "US", number(512)),
        element(syntax, tags.COLUMNS, "US", number(300)),
    ]


def deflate(data: bytes) -> bytes:
    """*data* as PS3.5 §A.5 wants it: raw deflate."""
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compressor.compress(data) + compressor.flush()


def encoded(syntax: str, between: bytes = b"") -> bytes:
    """The small data set, with pixels behind it."""
    data = b"".join(elements(syntax, between)) + element(syntax, 0x7FE00010, "OW", bytes(100))
    return deflate(data) if syntax == DEFLATED else data


def read(syntax: str, data: bytes, sizes: Iterable[int] = ()) -> Head:
    """The head of *data*, fed in pieces of *sizes* over and over, or whole."""
    reader = HeadReader(syntax)
    start = 0
    for size in itertools.cycle(sizes or [len(data)]):
        if start >= len(data) or reader.feed(memoryview(data)[start : start + size]):
            return reader.finish()
        start += size
    raise AssertionError


class Case(NamedTuple):
    """A file of pydicom's test data: its data set as encoded, and what pydicom says is in it."""

    name: str
    syntax: str
    data: bytes
    expected: dict[int, str | int | None]


def file_meta_end(data: bytes) -> int:
    """Where the data set begins in a file."""
    pos = 132 if data[128:132] == b"DICM" else 0
    while data[pos : pos + 2] == b"\2\0":
        if data[pos + 4 : pos + 6] in (b"OB", b"UN"):
            pos += 12 + int(struct.unpack_from("<I", data, pos + 8)[0])
        else:
            pos += 8 + int(struct.unpack_from("<H", data, pos + 6)[0])
    return pos


def expected(dataset: pydicom.Dataset, tag: int) -> str | int | None:
    """What Head should say of *tag*, by pydicom."""
    if tag not in dataset or dataset[tag].is_empty:
        return None
    found = dataset[tag]
    if found.VR in ("US", "IS"):
        return int(found.value) if str(found.value).strip().isdigit() else None
    values = [found.value] if found.VM == 1 else found.value
    return "\\".join(map(str, values)).strip("\0 ") or None


def value_of(head: Head, tag: int) -> str | int | None:
    """What Head says of *tag*."""
    if tag in UIDS:
        return head.uid(tag)
    if tag in (tags.ROWS, tags.COLUMNS, tags.SERIES_NUMBER, tags.INSTANCE_NUMBER, tags.NUMBER_OF_FRAMES):
        return head.integer(tag)
    text = head.text(tag)
    # pydicom leaves out the empty representations of a name
    return text.rstrip("= ") if text and tag in (tags.PATIENT_NAME, tags.REFERRING_PHYSICIAN_NAME) else text


@functools.cache
def cases() -> list[Case]:
    """Every file of pydicom's own that it can read, DICOMDIRs aside."""
    root = pathlib.Path(pydicom.data.__file__).parent
    found = []
    for path in sorted([*root.glob("test_files/**/*"), *root.glob("charset_files/*")]):
        if not path.is_file() or "DICOMDIR" in path.name:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                dataset = pydicom.dcmread(path, specific_tags=list(tags.WANTED), force=path.suffix == ".dcm")
            except (InvalidDicomError, NotImplementedError):
                continue
            values = {tag: expected(dataset, tag) for tag in tags.WANTED}
        syntax = dataset.file_meta.get("TransferSyntaxUID") if hasattr(dataset, "file_meta") else None
        if syntax is None:
            syntax = IMPLICIT if dataset.original_encoding[1] else BIG_ENDIAN
        data = path.read_bytes()
        found.append(Case(path.name, str(syntax), data[file_meta_end(data) :], values))
    return found


class RealFileTests(SynchronousTestCase):
    """pydicom is the judge."""

    def check(self, case: Case, sizes: Iterable[int] = ()) -> None:
        """Compare all that is wanted."""
        head = read(case.syntax, case.data, sizes)
        self.assertEqual({tag: value_of(head, tag) for tag in tags.WANTED}, case.expected, case.name)

    def test_whole(self) -> None:
        """Every readable file, fed at once, says what pydicom says, and all transfer syntaxes are among them."""
        self.assertGreater(len(cases()), 160)
        self.assertGreater(len({case.syntax for case in cases()}), 11)
        for case in cases():
            self.check(case)

    @settings(steady, max_examples=400)
    @given(st.integers(0, 1000), st.lists(st.integers(1, 3000), min_size=1, max_size=6))
    def test_fragmented(self, number: int, sizes: list[int]) -> None:
        """However a data set is cut, its head is the same."""
        self.check(cases()[number % len(cases())], sizes)

    def test_byte_by_byte(self) -> None:
        """A head that comes in single bytes is the same, in each transfer syntax and character set."""
        by_syntax = {case.syntax: case for case in cases() if len(case.data) < 2_000_000}
        charsets = [case for case in cases() if case.name.startswith("chr")]
        self.assertGreater(len(charsets), 15)
        for case in [*by_syntax.values(), *charsets]:
            self.check(case, [1])


class EncodingTests(SynchronousTestCase):
    """The data set of this module in all encodings."""

    def test_values(self) -> None:
        """Values are decoded by byte order and character set, in every transfer syntax."""
        for syntax in SYNTAXES:
            head = read(syntax, encoded(syntax))
            self.assertEqual(head.uid(tags.SOP_CLASS_UID), "1.2.840.10008.5.1.4.1.1.2", syntax)
            self.assertEqual(head.text(tags.PATIENT_NAME), "Jérôme^A", syntax)
            self.assertEqual(head.integer(tags.INSTANCE_NUMBER), -17, syntax)
            self.assertEqual((head.integer(tags.ROWS), head.integer(tags.COLUMNS)), (512, 300), syntax)
            self.assertEqual(head.raw[tags.STUDY_INSTANCE_UID], b"1.2.4\0", syntax)
            self.assertEqual(
                (head.uid(0x00080020), head.text(0x00080020), head.integer(0x00280008)), (None,) * 3
            )

    def test_complete_at_last(self) -> None:
        """The reader is through with the last wanted element, or any beyond it; what follows is ignored."""
        for syntax in (IMPLICIT, EXPLICIT, BIG_ENDIAN):
            *others, last = elements(syntax)
            reader = HeadReader(syntax)
            self.assertFalse(reader.feed(b"".join(others)), syntax)
            self.assertFalse(reader.feed(last[:-1]), syntax)
            self.assertTrue(reader.feed(last[-1:]), syntax)
            self.assertTrue(reader.feed(b"garbage"), syntax)
            beyond = element(syntax, 0x00280100, "US", b"", 2)
            reader = HeadReader(syntax)
            self.assertTrue(reader.feed(b"".join(others) + beyond), syntax)
            self.assertNotIn(tags.COLUMNS, reader.finish().raw)
            whatever = b"\xe0\x7f\x7f\xe0\0\0\0\0"
            self.assertTrue(HeadReader(syntax).feed(others[0] + whatever))

    def test_mislabelled(self) -> None:
        """Implicit VR under an explicit little endian syntax is understood, and the other way round."""
        for truth, label in ((IMPLICIT, EXPLICIT), (IMPLICIT, JPEG), (EXPLICIT, IMPLICIT)):
            for sizes in ([], [1]):
                self.assertEqual(read(label, encoded(truth), sizes).raw, read(truth, encoded(truth)).raw)

    def test_padding_behind_deflated(self) -> None:
        """A deflated data set of odd length is padded by a NUL; one without pixels ends with its stream."""
        data = deflate(b"".join(elements(EXPLICIT)[:-1])) + b"\0"
        self.assertEqual(read(DEFLATED, data, [7]).uid(tags.SERIES_INSTANCE_UID), "1.2.5")

    def test_deflated_long_run(self) -> None:
        """Much may come out of the last bytes of a deflated data set: all of it is read."""
        for extra in range(-500, 100, 7):
            run = element(EXPLICIT, 0x00091002, "UN", bytes(2 * PIECE + extra))
            data = deflate(b"".join(elements(EXPLICIT, run)[:-2]))
            self.assertEqual(read(DEFLATED, data).uid(tags.SERIES_INSTANCE_UID), "1.2.5")
            data = deflate(b"".join(elements(EXPLICIT)[:3]) + run)
            self.assertEqual(read(DEFLATED, data).uid(tags.SOP_INSTANCE_UID), "1.2.3")

    def test_empty(self) -> None:
        """A data set of no bytes has an empty head."""
        self.assertEqual(read(EXPLICIT, b"").raw, {})

    def test_file_refused(self) -> None:
        """A file sent as it is, with preamble or File Meta, and a DICOMDIR are no data sets."""
        file_meta = element(EXPLICIT, 0x00020000, "UL", b"\0\0\0\0")
        directory = element(EXPLICIT, 0x00041130, "CS", b"DISK")
        for start in (bytes(128) + b"DICM" + file_meta, file_meta, directory):
            for syntax in (EXPLICIT, IMPLICIT):
                self.assertRaises(HeadError, read, syntax, start + encoded(EXPLICIT))


class SequenceTests(SynchronousTestCase):
    """Sequences before the UIDs."""

    def check(self, syntax: str, between: bytes) -> None:
        """The head is as without *between*, whole and in pieces."""
        for sizes in ([], [1], [7], [1000, 3]):
            head = read(syntax, encoded(syntax, between), sizes)
            self.assertEqual(head.raw, read(syntax, encoded(syntax)).raw)

    def test_nested_uids_are_not_taken(self) -> None:
        """What stands inside sequences is not of the top level, with defined and undefined lengths in any mix."""
        for syntax in SYNTAXES:
            inside = element(syntax, tags.SOP_INSTANCE_UID, "UI", b"6.6.6\0")
            inner = element(syntax, REFERENCED_IMAGE_SEQUENCE, "SQ", element(syntax, ITEM, "", inside))
            items = {
                True: element(syntax, ITEM, "", inside + inner),
                False: element(syntax, ITEM, "", inside + inner, UNDEFINED) + element(syntax, ITEM_END, ""),
            }
            for defined, kinds in itertools.product(
                (True, False), itertools.product((True, False), repeat=2)
            ):
                content = b"".join(items[kind] for kind in kinds)
                if defined:
                    sequence = element(syntax, REFERENCED_IMAGE_SEQUENCE, "SQ", content)
                else:
                    content += element(syntax, SEQUENCE_END, "")
                    sequence = element(syntax, REFERENCED_IMAGE_SEQUENCE, "SQ", content, UNDEFINED)
                self.check(syntax, sequence)

    def test_deep(self) -> None:
        """10,000 sequences in each other are counted down and up again."""
        for syntax in SYNTAXES:
            start = element(syntax, REFERENCED_IMAGE_SEQUENCE, "SQ", b"", UNDEFINED)
            start += element(syntax, ITEM, "", b"", UNDEFINED)
            end = element(syntax, ITEM_END, "") + element(syntax, SEQUENCE_END, "")
            between = start * 10_000 + element(syntax, tags.SOP_INSTANCE_UID, "UI", b"6.6.6\0") + end * 10_000
            self.assertEqual(
                read(syntax, encoded(syntax, between), [997]).raw, read(syntax, encoded(syntax)).raw, syntax
            )
            if syntax != DEFLATED:
                self.assertRaises(HeadError, read, syntax, b"".join(elements(syntax)[:3]) + start * 10_000)

    def test_un_of_undefined_length(self) -> None:
        """A UN of undefined length is implicit VR inside, also within a sequence, and explicit after it."""
        nested = element(IMPLICIT, tags.SOP_INSTANCE_UID, "UI", b"6.6.6\0")
        content = element(IMPLICIT, ITEM, "", nested, UNDEFINED) + element(IMPLICIT, ITEM_END, "")
        content += element(IMPLICIT, SEQUENCE_END, "")
        un = element(EXPLICIT, 0x00091002, "UN", content, UNDEFINED)
        self.check(EXPLICIT, un)
        item = un + element(EXPLICIT, tags.SOP_INSTANCE_UID, "UI", b"6.6.7\0")
        item = element(EXPLICIT, ITEM, "", item, UNDEFINED) + element(EXPLICIT, ITEM_END, "")
        content = item * 2 + element(EXPLICIT, SEQUENCE_END, "")
        self.check(EXPLICIT, element(EXPLICIT, REFERENCED_IMAGE_SEQUENCE, "SQ", content, UNDEFINED))

    def test_un_in_big_endian(self) -> None:
        """A UN of undefined length is little endian even in a big endian data set (PS3.5 §6.2.2)."""
        content = element(IMPLICIT, ITEM, "", b"abcd") + element(IMPLICIT, SEQUENCE_END, "")
        self.check(BIG_ENDIAN, element(BIG_ENDIAN, 0x00091002, "UN", content, UNDEFINED))

    def test_lenient(self) -> None:
        """Tolerated: implicit VR inside an explicit sequence, a missing or needless end of an item, icon fragments."""
        nested = element(IMPLICIT, tags.SOP_INSTANCE_UID, "UI", b"6.6.6\0")
        start, end = element(EXPLICIT, ITEM, "", b"", UNDEFINED), element(EXPLICIT, ITEM_END, "")
        stop = element(EXPLICIT, SEQUENCE_END, "")
        fragments = element(EXPLICIT, ITEM, "") + element(EXPLICIT, ITEM, "", b"jpeg") + stop
        for content in (
            start + nested + end,
            start + nested,
            element(EXPLICIT, ITEM, "", b"") + end,
            start + element(EXPLICIT, 0x7FE00010, "OB", fragments, UNDEFINED) + end,
        ):
            sequence = element(EXPLICIT, REFERENCED_IMAGE_SEQUENCE, "SQ", content + stop, UNDEFINED)
            self.check(EXPLICIT, sequence)

    def test_garbage(self) -> None:
        """Elements between items, items in items and unknown delimiters are refused, with tag and position."""
        begun = b"".join(elements(EXPLICIT)[:3])
        begun += element(EXPLICIT, REFERENCED_IMAGE_SEQUENCE, "SQ", b"", UNDEFINED)
        item = element(EXPLICIT, ITEM, "", b"", UNDEFINED)
        for start, bad, message in (
            (
                begun,
                element(EXPLICIT, tags.MODALITY, "CS", b"CT"),
                r"\(0008,0060\) at byte %d .* between items",
            ),
            (begun + item, item, r"\(FFFE,E000\) at byte %d .* item in an item"),
            (begun + item, element(EXPLICIT, 0xFFFE0001, ""), r"\(FFFE,0001\) at byte %d .* not known"),
        ):
            for sizes in ([], [5]):
                with self.assertRaisesRegex(HeadError, message % len(start)):
                    read(EXPLICIT, start + bad, sizes)


class HostileTests(SynchronousTestCase):
    """Claims, cuts and noise."""

    def test_truncated(self) -> None:
        """Cut at every byte, a data set is refused, unless it ends between elements or behind the head."""
        nested = {
            syntax: element(syntax, REFERENCED_IMAGE_SEQUENCE, "SQ", b"", UNDEFINED)
            + element(syntax, ITEM, "", b"", UNDEFINED)
            + element(syntax, ITEM_END, "")
            + element(syntax, SEQUENCE_END, "")
            for syntax in SYNTAXES
        }
        for syntax in SYNTAXES:
            data = encoded(syntax, nested[syntax])
            whole = read(syntax, data).raw
            ends = set(itertools.accumulate(map(len, elements(syntax, nested[syntax])), initial=0))
            enough = max(ends) if syntax != DEFLATED else len(data)
            for end, size in itertools.product(range(len(data)), (1, len(data))):
                try:
                    head = read(syntax, data[:end], [size])
                except HeadError as error:
                    self.assertNotIn("\n", str(error))
                    self.assertTrue(end < enough and (syntax == DEFLATED or end not in ends), (syntax, end))
                else:
                    self.assertLessEqual(head.raw.items(), whole.items())
                    if syntax != DEFLATED:
                        self.assertTrue(end in ends or end >= enough, (syntax, end))
                        self.assertEqual(end >= enough, tags.COLUMNS in head.raw)

    def test_huge_claims(self) -> None:
        """An element that claims 4 GiB costs no memory, and is refused when they do not come."""
        for syntax in (IMPLICIT, EXPLICIT, BIG_ENDIAN):
            begun = b"".join(elements(syntax)[:3]) + element(syntax, 0x00091002, "UN", b"", UNDEFINED - 1)
            zeros = bytes(1024 * 1024)
            tracemalloc.start()
            reader = HeadReader(syntax)
            reader.feed(begun)
            for _ in range(64):
                self.assertFalse(reader.feed(zeros))
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            self.assertLess(peak, 200_000)
            with self.assertRaisesRegex(HeadError, "ends inside the element at byte"):
                reader.finish()

    def test_skipped_to_the_byte(self) -> None:
        """A large value is skipped over many feeds, and reading goes on right behind it."""
        large = element(EXPLICIT, 0x00091002, "UN", bytes(300_001))
        self.assertEqual(
            read(EXPLICIT, encoded(EXPLICIT, large), [50_000, 1, 8192]).raw,
            read(EXPLICIT, encoded(EXPLICIT)).raw,
        )

    def test_long_values(self) -> None:
        """A wanted value over the limit is left out; a UID is refused."""
        for syntax in SYNTAXES:
            text = element(syntax, tags.STUDY_DESCRIPTION, "LO", b"x" * (MAX_VALUE + 1))
            head = read(syntax, encoded(syntax, text), [100])
            self.assertNotIn(tags.STUDY_DESCRIPTION, head.raw)
            self.assertEqual(head.uid(tags.SERIES_INSTANCE_UID), "1.2.5")
            text = element(syntax, tags.STUDY_DESCRIPTION, "LO", b"x" * MAX_VALUE)
            self.assertEqual(
                read(syntax, encoded(syntax, text), [100]).text(tags.STUDY_DESCRIPTION), "x" * MAX_VALUE
            )
            uid = encoded(syntax, element(syntax, tags.STUDY_INSTANCE_UID, "UI", b"1" * (MAX_VALUE + 1)))
            self.assertRaises(HeadError, read, syntax, uid)

    def test_no_vr(self) -> None:
        """An explicit element whose VR is not two capitals is refused, and told by tag and byte."""
        begun = b"".join(elements(EXPLICIT)[:3])
        for vr in ("\0\0", "us", "U1", "  "):
            with self.assertRaisesRegex(HeadError, rf"\(0010,0030\) at byte {len(begun)} has no VR"):
                read(EXPLICIT, begun + element(EXPLICIT, tags.PATIENT_BIRTH_DATE, vr, b"20200101"))
        with self.assertRaisesRegex(HeadError, r"\(0008,0060\) at byte 0 has no VR"):
            read(BIG_ENDIAN, element(BIG_ENDIAN, tags.MODALITY, "\0\0", b"CT"))

    def test_future_vr(self) -> None:
        """A VR that is not known has a 32-bit length, as PS3.5 §7.1.2 promises of those to come."""
        future = element(EXPLICIT, 0x00090010, "UN", b"abcd").replace(b"UN", b"ZZ")
        self.assertEqual(read(EXPLICIT, encoded(EXPLICIT, future)).raw, read(EXPLICIT, encoded(EXPLICIT)).raw)

    def test_deflate_bomb(self) -> None:
        """A data set that inflates without end is given up, in little memory."""
        start = b"".join(elements(EXPLICIT)[:3]) + element(EXPLICIT, 0x00091002, "UN", b"", UNDEFINED - 1)
        compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        bomb = compressor.compress(start) + b"".join(
            compressor.compress(bytes(1024 * 1024)) for _ in range(MAX_INFLATED // 1024**2 + 1)
        )
        tracemalloc.start()
        with self.assertRaisesRegex(HeadError, f"no end of its head in {MAX_INFLATED} bytes"):
            HeadReader(DEFLATED).feed(bomb)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        self.assertLess(peak, 300_000)

    def test_damaged_behind_its_head(self) -> None:
        """Whether a damaged deflated data set has its head does not depend on where it is cut: all that stands before
        the damage counts.
        """
        head = b"".join(elements(EXPLICIT)) + element(EXPLICIT, 0x00091002, "OB", bytes(300))
        whole = deflate(head + element(EXPLICIT, 0x7FE00010, "OB", random.Random(1).randbytes(2000)))
        expected = read(EXPLICIT, head).raw
        outcomes: set[object] = set()
        for position in range(0, len(whole) - 1, 7):
            data = whole[:position] + b"\xff\xff" + whole[position + 2 :]
            found: set[object] = set()
            for size in (1, 2, 16, 100, 333, 5000):
                reader = HeadReader(DEFLATED)
                try:
                    for start in range(0, len(data), size):
                        if reader.feed(data[start : start + size]):
                            break
                    found.add(tuple(reader.finish().raw.items()))
                except HeadError as error:
                    found.add(str(error))
            self.assertEqual(len(found), 1, f"byte {position}: {found}")
            outcomes |= found
        self.assertIn(tuple(expected.items()), outcomes)
        self.assertTrue(any(isinstance(outcome, str) for outcome in outcomes))

    def test_not_deflated(self) -> None:
        """What cannot be inflated is refused in one line."""
        with self.assertRaisesRegex(HeadError, "cannot be inflated"):
            read(DEFLATED, b"\xff" + encoded(EXPLICIT))

    @settings(steady, max_examples=400)
    @given(
        st.sampled_from(SYNTAXES),
        st.lists(
            st.one_of(
                st.binary(max_size=40),
                st.sampled_from(
                    [
                        part
                        for syntax in (EXPLICIT, IMPLICIT, BIG_ENDIAN)
                        for part in (
                            *elements(syntax),
                            element(syntax, REFERENCED_IMAGE_SEQUENCE, "SQ", b"", UNDEFINED),
                            element(syntax, 0x00091002, "UN", b"", UNDEFINED),
                            element(syntax, ITEM, "", b"", UNDEFINED),
                            element(syntax, ITEM_END, ""),
                            element(syntax, SEQUENCE_END, ""),
                        )
                    ]
                ),
            ),
            max_size=20,
        ).map(b"".join),
        st.booleans(),
        st.lists(st.integers(1, 50), min_size=1, max_size=4),
    )
    @example(EXPLICIT, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", False, [4])
    def test_noise(self, syntax: str, data: bytes, squeeze: bool, sizes: list[int]) -> None:
        """Noise gives a head or HeadError, nothing else, and the same however it is cut.

        Only where noise is to be inflated, it may break before or behind the end of the head.
        """
        if squeeze:
            data = deflate(data)
        outcomes: list[dict[int, bytes] | None] = []
        for cut in ([], sizes, [1]):
            try:
                head = read(syntax, data, cut)
            except HeadError:
                outcomes.append(None)
                continue
            outcomes.append(head.raw)
            for tag in tags.WANTED:
                head.text(tag)
                head.integer(tag)
                try:
                    head.uid(tag)
                except HeadError:
                    pass
        if squeeze or syntax != DEFLATED:
            self.assertEqual(outcomes[1:], outcomes[:1] * 2)


class ValueTests(SynchronousTestCase):
    """The decoding of values."""

    def test_uid(self) -> None:
        """UIDs lose their padding; an empty one is none; beyond ASCII there are none."""
        for raw, uid in ((b"1.2\0", "1.2"), (b"1.2 ", "1.2"), (b"\0", None), (b"", None), (b"../x", "../x")):
            self.assertEqual(Head({tags.SOP_INSTANCE_UID: raw}).uid(tags.SOP_INSTANCE_UID), uid)
        with self.assertRaisesRegex(HeadError, r"\(0008,0018\) is not a UID"):
            Head({tags.SOP_INSTANCE_UID: b"1.\xb2"}).uid(tags.SOP_INSTANCE_UID)

    def test_integer(self) -> None:
        """IS and US become numbers, and what is none becomes None."""
        for raw, number in (
            (b"1 ", 1),
            (b" -2147483648", -(2**31)),
            (b"+7\0", 7),
            (b"", None),
            (b"  ", None),
            (b"1A", None),
            (b"1_0 ", None),
            (b"1.5 ", None),
            (b"1\\2 ", None),
            (b"9" * 13, None),
            ("٣".encode(), None),
        ):
            self.assertEqual(Head({tags.INSTANCE_NUMBER: raw}).integer(tags.INSTANCE_NUMBER), number, raw)
        self.assertEqual(Head({tags.ROWS: b"\1\2"}).integer(tags.ROWS), 0x0201)
        self.assertEqual(Head({tags.ROWS: b"\1\2"}, big_endian=True).integer(tags.ROWS), 0x0102)
        self.assertIsNone(Head({tags.ROWS: b"512 "}).integer(tags.ROWS))

    def text(self, charset: str, raw: bytes) -> str | None:
        """*raw* as a name."""
        return Head({tags.SPECIFIC_CHARACTER_SET: charset.encode(), tags.PATIENT_NAME: raw}).text(
            tags.PATIENT_NAME
        )

    @settings(steady, max_examples=300)
    @given(st.data())
    def test_character_sets(self, data: st.DataObject) -> None:
        """What pydicom encodes in any character set, with code extensions or without, comes back as pydicom says."""
        terms, alphabet = data.draw(
            st.sampled_from(
                [
                    (["ISO_IR 100"], "AÄé^= ÿ"),
                    (["ISO_IR 101"], "AŁő^"),
                    (["ISO_IR 144"], "AЛюк^"),
                    (["ISO_IR 126"], "AΔιο^"),
                    (["ISO_IR 138"], "Aשר^"),
                    (["ISO_IR 127"], "Aقبا^"),
                    (["ISO_IR 166"], "Aกข^"),
                    (["ISO_IR 13"], "Aﾔﾏﾀﾞ^"),
                    (["ISO_IR 192"], "Aé王ЛΔ^="),
                    (["GB18030"], "A王小东^=€"),
                    (["GBK"], "A王小东^="),
                    (["ISO 2022 IR 6", "ISO 2022 IR 149"], "A洪길동^="),
                    (["", "ISO 2022 IR 87"], "A山田太郎^="),
                    (["ISO 2022 IR 13", "ISO 2022 IR 87"], "Aﾔﾏ山田^="),
                    (["", "ISO 2022 IR 87", "ISO 2022 IR 159"], "A山丂^="),
                    (["ISO 2022 IR 100", "ISO 2022 IR 144", "ISO 2022 IR 126"], "AéЛюΔι^\n"),
                ]
            )
        )
        text = data.draw(st.text(alphabet, max_size=12))
        encodings = convert_encodings(list(terms))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a text that the terms together do not have, a part is lost
            raw = encode_string(text, encodings) if text else b""
            judged = decode_bytes(raw, encodings, {0x0D, 0x0A, 0x09, 0x0C})
        self.assertEqual(self.text("\\".join(terms), raw), judged.strip("\0 ") or None)

    def test_chinese_code_extension(self) -> None:
        """The example of PS3.5 Annex K, whose escape sequences are no part of the name."""
        raw = b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1\xb6\xab="
        self.assertEqual(self.text("\\ISO 2022 IR 58", raw), "Zhang^XiaoDong=张^小东=")

    def test_misspelt_character_sets(self) -> None:
        """Common misspellings of the Defined Terms are understood; an unknown term is the default repertoire."""
        for term, raw, text in (
            ("ISO-IR 144", b"\xbb\xee\xda", "Люк"),
            ("ISO IR 144", b"\xbb\xee\xda", "Люк"),
            ("iso_ir_192", "é".encode(), "é"),
            ("UTF-8", "é".encode(), "é"),
            ("ISO 8859-5", b"\xbb\xee\xda", "Люк"),
            ("rot13", b"\xe9", "é"),
            ("", b"\xe9", "é"),
            ("ISO_IR 192\\ISO 2022 IR 87", "é\x1b$B;3".encode(), "é\x1b$B;3"),
        ):
            self.assertEqual(self.text(term, raw), text, term)

    def test_bad_bytes(self) -> None:
        """What a character set does not have is replaced."""
        self.assertEqual(self.text("ISO_IR 192", b"A\xff^B"), "A\ufffd^B")
        self.assertEqual(self.text("\\ISO 2022 IR 149", b"\x1b$)CA\xff"), "A\ufffd")

    @settings(steady, max_examples=300)
    @given(
        st.lists(
            st.sampled_from(
                ["", "ISO 2022 IR 87", "ISO 2022 IR 149", "ISO_IR 192", "ISO 2022 IR 13", "?", "\xff"]
            ),
            min_size=1,
        ).map("\\".join),
        st.lists(
            st.one_of(st.binary(max_size=6), st.sampled_from([b"\x1b$B", b"\x1b$)C", b"\x1b(B", b"\x1b$"]))
        ).map(b"".join),
    )
    def test_any_bytes(self, charset: str, raw: bytes) -> None:
        """Whatever the bytes and the character sets, text() gives text that can be stored."""
        text = self.text(charset, raw)
        if text is not None:
            self.assertTrue(text.encode())
