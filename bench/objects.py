"""The objects that the load generator sends, encoded once and patched for every instance.

A data set is a CT-like head (patient, study, series, equipment, image attributes, sequences and a private
block: some 75 elements, 2 KiB) in Explicit VR Little Endian, and Pixel Data that fill it up to the wanted size.
An object below 4 KiB has only the elements that tell it apart and describe its pixels.
All identifiers have a fixed width, so that a new instance is the old bytes with a few digits overwritten.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import struct

from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
MULTI_FRAME_GRAYSCALE_WORD_STORAGE = "1.2.840.10008.5.1.4.1.1.7.3"
EXPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
PRESENTATION_CONTEXT_ID = 1

LARGEST_PDU = 256 * 1024
"""Bytes of the variable field of our P-DATA-TF PDUs where the peer sets no limit or a higher one."""

SMALLEST_SIZE = 1024
_SMALLEST_WITH_FULL_HEAD = 4 * 1024
_RUN = "1" + "0" * 19  # 20 digits: unlike any real run, which is random
_FRAME_EDGE = 512
_SINGLE_FRAME_PIXELS = 1024 * 1024  # above it, an object has several frames
_MERGE_BELOW = 64 * 1024  # an object that small is sent from one buffer
_BLOCK = 1024 * 1024  # PDUs of pixel data encoded in advance, in bytes

_PATTERN = hashlib.shake_256(b"pixel data").digest(LARGEST_PDU)


def study_instance_uid(run: str, association: int) -> str:
    """Study Instance UID of one association: 32 characters for a run of 20 digits."""
    return f"2.25.{run}.{100000 + association}"


def series_instance_uid(run: str, association: int, series: int) -> str:
    """Series Instance UID; ``series`` counts from 0 within the association."""
    return f"{study_instance_uid(run, association)}.{10000 + series}"


def sop_instance_uid(run: str, association: int, series: int, instance: int) -> str:
    """SOP Instance UID; ``instance`` counts from 0 within the association, across its series."""
    return f"{series_instance_uid(run, association, series)}.{10000000 + instance}"


def series_length(association: int, series: int) -> int:
    """Number of instances in a series: 100 to 300, the same in every run."""
    return 100 + (61 * association + 37 * series) % 201


def _head(sop_class_uid: str, rows: int, columns: int, frames: int, full: bool) -> bytes:
    """The data set up to, not including, Pixel Data, in Explicit VR Little Endian."""
    study, series = study_instance_uid(_RUN, 0), series_instance_uid(_RUN, 0, 0)
    ds = Dataset()
    if full:
        _describe(ds, study)
    ds.SOPClassUID = sop_class_uid
    ds.SOPInstanceUID = sop_instance_uid(_RUN, 0, 0, 0)
    ds.StudyDate, ds.StudyTime = "20240131", "100112.000000"
    ds.Modality = "CT" if frames == 1 else "OT"
    ds.PatientName = "Phantom^Bench^000000"
    ds.PatientID = "BENCH-000000"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = study, series
    ds.SeriesNumber = "00000001"
    ds.InstanceNumber = "00000001"
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    if frames > 1:
        ds.NumberOfFrames = f"{frames:06d}"
        ds.FrameIncrementPointer = 0x00181063
        ds.FrameTime = "40"
    ds.Rows, ds.Columns = rows, columns
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, False
    write_dataset(buffer, ds)
    return buffer.getvalue()


def _describe(ds: Dataset, study: str) -> None:
    """Adds what a scanner says besides."""
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.InstanceCreationDate, ds.InstanceCreationTime = "20240131", "101507.000000"
    ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = "20240131"
    ds.SeriesTime = "101044.000000"
    ds.AcquisitionTime, ds.ContentTime = "101501.250000", "101507.000000"
    ds.AccessionNumber = "A20240131-0042"
    ds.Manufacturer = "Load Generator"
    ds.InstitutionName = "Department of Radiology"
    ds.ReferringPhysicianName = "Referring^Physician^^Dr."
    ds.StationName = "CT-ROOM-3"
    ds.StudyDescription = "CT thorax and abdomen with contrast"
    ds.SeriesDescription = "Thorax 1.0 mm soft tissue kernel"
    ds.OperatorsName = "Operator^On Duty"
    ds.ManufacturerModelName = "Spiral 64"
    ds.ReferencedStudySequence = [_reference("1.2.840.10008.3.1.2.3.1", study + ".1")]
    ds.ReferencedImageSequence = [_reference(CT_IMAGE_STORAGE, study + f".2.{i}") for i in (1, 2)]
    ds.IssuerOfPatientID = "LOADGEN"
    ds.PatientBirthDate, ds.PatientSex, ds.PatientAge = "19601224", "O", "063Y"
    ds.PatientSize, ds.PatientWeight = "1.76", "74.5"
    ds.ContrastBolusAgent = "Iodine 350 mg/ml, 80 ml"
    ds.BodyPartExamined = "CHEST"
    ds.ScanOptions = "HELICAL MODE"
    ds.SliceThickness, ds.KVP, ds.DataCollectionDiameter = "1.000000", "120", "500.000000"
    ds.DeviceSerialNumber, ds.SoftwareVersions = "000001", "1.0"
    ds.ProtocolName = "6.1 Thorax-Abdomen 1.0"
    ds.ReconstructionDiameter = "360.000000"
    ds.DistanceSourceToDetector, ds.DistanceSourceToPatient = "949.147", "541.000"
    ds.GantryDetectorTilt, ds.TableHeight, ds.RotationDirection = "0.000000", "146.500000", "CW"
    ds.ExposureTime, ds.XRayTubeCurrent, ds.Exposure = "570", "380", "11"
    ds.FilterType, ds.GeneratorPower = "BODY FILTER", "45600"
    ds.FocalSpots, ds.ConvolutionKernel, ds.PatientPosition = "1.200000", "STANDARD", "FFS"
    ds.add_new(0x00190010, "LO", "LOADGEN 1.0")
    ds.add_new(0x00191002, "SL", 912)
    ds.add_new(0x00191023, "DS", ["39.375000", "0.984375"])
    ds.StudyID, ds.AcquisitionNumber = "4242", "1"
    ds.ImagePositionPatient = ["-180.000000", "-180.000000", "-432.250000"]
    ds.ImageOrientationPatient = ["1.000000", "0.000000", "0.000000", "0.000000", "1.000000", "0.000000"]
    ds.FrameOfReferenceUID = study + ".3"
    ds.PositionReferenceIndicator, ds.SliceLocation = "SN", "-432.250000"
    ds.PixelSpacing = ["0.703125", "0.703125"]
    ds.WindowCenter, ds.WindowWidth = ["40", "-600"], ["400", "1500"]
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = "-1024", "1", "HU"
    ds.RequestedProcedureDescription = "CT thorax and abdomen"
    ds.PerformedProcedureStepStartDate, ds.PerformedProcedureStepStartTime = "20240131", "100112"
    ds.PerformedProcedureStepID = "PPS4242"


def _reference(sop_class_uid: str, instance_uid: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class_uid, instance_uid
    return item


def _command_element(element: int, value: bytes) -> bytes:
    """One element of a command set: group 0000, Implicit VR Little Endian (PS3.7 section 6.3.1)."""
    return struct.pack("<HHI", 0, element, len(value)) + value


def _padded(uid: str) -> bytes:
    return uid.encode() + b"\0" * (len(uid) % 2)


def c_store_rq(sop_class_uid: str) -> bytes:
    """The command set of a C-STORE-RQ (PS3.7 section 9.3.1.1), Message ID and instance UID still to be patched."""
    rest = b"".join(
        (
            _command_element(0x0002, _padded(sop_class_uid)),
            _command_element(0x0100, struct.pack("<H", 0x0001)),
            _command_element(0x0110, struct.pack("<H", 0)),
            _command_element(0x0700, struct.pack("<H", 0)),
            _command_element(0x0800, struct.pack("<H", 0)),  # anything but 0101H: a data set follows
            _command_element(0x1000, _padded(sop_instance_uid(_RUN, 0, 0, 0))),
        )
    )
    return _command_element(0x0000, struct.pack("<I", len(rest))) + rest


def p_data_tf_header(length: int, *, command: bool, last: bool) -> bytes:
    """The 12 bytes before a fragment of ``length`` bytes that has a P-DATA-TF PDU to itself (PS3.8 section 9.3.5)."""
    flags = (1 if command else 0) | (2 if last else 0)
    return struct.pack(">BBIIBB", 4, 0, length + 6, length + 2, PRESENTATION_CONTEXT_ID, flags)


@dataclasses.dataclass(frozen=True, slots=True)
class ObjectTemplate:
    """One object of a given size, cut into PDUs for one maximum PDU length.

    ``prefix`` holds the C-STORE-RQ and the beginning of the data set, with everything that is patched;
    ``rest`` the remaining PDUs, shared by all associations: the buffers repeat, so even a data set of 1 GiB
    takes 1 MiB of memory. Offsets are into ``prefix``.
    """

    sop_class_uid: str
    size: int
    payload: int
    prefix: bytes
    rest: tuple[memoryview, ...]
    head_offset: int
    head_length: int

    def offsets(self, text: str, *, within_head: bool = False) -> tuple[int, ...]:
        """Where ``text`` stands in the prefix, command set and data set, as whole values."""
        found, at = [], self.head_offset if within_head else 0
        end = self.head_offset + self.head_length
        while (at := self.prefix.find(text.encode(), at, end)) >= 0:
            found.append(at)
            at += 1
        return tuple(found)


@functools.lru_cache(maxsize=32)
def object_template(size: int, max_pdu: int) -> ObjectTemplate:
    """The template of objects whose encoded data set has at most ``size`` bytes (and hardly less).

    ``max_pdu`` is the Maximum Length the peer announced, in bytes; 0 means no limit (PS3.8 Annex D.1).
    Raises ValueError if ``size`` cannot hold the head, or ``max_pdu`` not the head in one PDU.
    """
    if size < SMALLEST_SIZE or size >= 2**32 - 1:
        raise ValueError(f"an object has from {SMALLEST_SIZE} bytes to 4 GiB, not {size}")
    several = size // 2 > _SINGLE_FRAME_PIXELS
    sop_class_uid = MULTI_FRAME_GRAYSCALE_WORD_STORAGE if several else CT_IMAGE_STORAGE
    full = size >= _SMALLEST_WITH_FULL_HEAD
    head_length = len(_head(sop_class_uid, 1, 1, 2 if several else 1, full)) + 12
    pixels = (size - head_length) // 2
    frames = math.ceil(pixels / _FRAME_EDGE**2) if several else 1
    columns = _FRAME_EDGE if several else math.isqrt(pixels)
    rows = pixels // (columns * frames)
    pixel_bytes = 2 * rows * columns * frames
    head = _head(sop_class_uid, rows, columns, frames, full)
    head += struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OW", 0, pixel_bytes)

    limit = min(max_pdu, LARGEST_PDU) if max_pdu else LARGEST_PDU
    payload = (limit - 6) & ~1
    if payload < len(head):
        raise ValueError(f"the peer's maximum PDU length of {max_pdu} bytes is below {len(head) + 6}")
    command = c_store_rq(sop_class_uid)
    data_length = len(head) + pixel_bytes
    first = min(payload, data_length)
    prefix = b"".join(
        (
            p_data_tf_header(len(command), command=True, last=True),
            command,
            p_data_tf_header(first, command=False, last=first == data_length),
            head,
        )
    )
    rest = [memoryview(_PATTERN)[len(head) : first]]
    # As many PDUs as fit into _BLOCK are encoded once, and sent as often as needed.
    whole, last = divmod(data_length - first, payload)
    if whole and not last:
        whole, last = whole - 1, payload
    pdu = p_data_tf_header(payload, command=False, last=False) + _PATTERN[:payload]
    per_block = min(max(1, _BLOCK // len(pdu)), whole)
    block = memoryview(pdu * per_block)
    while whole:
        take = min(whole, per_block)
        rest.append(block[: take * len(pdu)])
        whole -= take
    if last:
        rest.append(memoryview(p_data_tf_header(last, command=False, last=True) + _PATTERN[:last]))
    head_offset = len(prefix) - len(head)
    if len(prefix) + sum(map(len, rest)) <= _MERGE_BELOW:
        prefix, rest = b"".join((prefix, *rest)), []
    return ObjectTemplate(sop_class_uid, data_length, payload, prefix, tuple(rest), head_offset, len(head))


class ObjectStream:
    """The objects of one association, one after the other: each a patch of the one before.

    ``run`` is a string of 20 digits that makes the UIDs of a run unique, ``association`` a number below
    900,000. ``advance()`` makes the next object; then ``pieces`` are its PDUs, to be sent in this order
    before ``advance()`` is called again.
    """

    def __init__(self, run: str, association: int) -> None:
        if len(run) != len(_RUN) or not run.isdecimal() or run[0] == "0":
            raise ValueError(f"a run is {len(_RUN)} digits, the first not 0; not {run!r}")
        self.pieces: list[memoryview] = []
        self.instance = self.series = -1
        self._run, self._association = run, association
        self._series_ends = 0
        self._template: ObjectTemplate | None = None
        self._prefix = bytearray()
        self._instance_digits: tuple[int, ...] = ()
        self._instance_number = self._message_id = 0

    def use(self, template: ObjectTemplate) -> None:
        """Sends the following objects as ``template`` says; called once the peer's maximum PDU length is known."""
        if template is self._template:
            return
        self._template = template
        self._prefix = bytearray(template.prefix)
        self.pieces = [memoryview(self._prefix), *template.rest]
        self._message_id = self._one(template.offsets("\0\0\x10\x01\2\0\0\0")[:1]) + 8
        self._instance_number = self._one(template.offsets("\x20\0\x13\0IS\x08\0", within_head=True)) + 8
        instance = template.offsets(sop_instance_uid(_RUN, 0, 0, 0))
        if len(instance) != 2:
            raise AssertionError(
                "the SOP Instance UID stands once in the command set and once in the data set"
            )
        self._instance_digits = tuple(at + len(series_instance_uid(_RUN, 0, 0)) + 1 for at in instance)
        number = f"{self._association:06d}"
        for text in ("Phantom^Bench^000000", "BENCH-000000"):
            self._put(self._one(template.offsets(text)) + len(text) - 6, number)
        for at in template.offsets(study_instance_uid(_RUN, 0)):
            self._put(at, study_instance_uid(self._run, self._association))
        if self.series >= 0:
            self._put_series()

    def advance(self, message_id: int) -> None:
        """Patches the bytes for the next instance, and for its series when a new one begins."""
        self.instance = instance = self.instance + 1
        if instance >= self._series_ends:
            self.series += 1
            self._series_ends = instance + series_length(self._association, self.series)
            self._put_series()
        prefix, digits = self._prefix, b"%08d" % (10000000 + instance)
        for at in self._instance_digits:
            prefix[at : at + 8] = digits
        at = self._instance_number
        prefix[at : at + 8] = b"%08d" % (instance + 1)
        struct.pack_into("<H", prefix, self._message_id, message_id)

    def sop_instance_uid(self) -> str:
        """SOP Instance UID of the object that ``pieces`` hold."""
        return sop_instance_uid(self._run, self._association, self.series, self.instance)

    def data_set(self) -> bytes:
        """The encoded data set of the object that ``pieces`` hold, freed of its PDUs (for tests; joined in memory)."""
        stream, out, at = b"".join(self.pieces), [], 0
        while at < len(stream):
            end = at + 6 + int.from_bytes(stream[at + 2 : at + 6], "big")
            if not stream[at + 11] & 1:
                out.append(stream[at + 12 : end])
            at = end
        return b"".join(out)

    def _put_series(self) -> None:
        assert self._template is not None
        # The series' UID is also the beginning of both SOP Instance UIDs.
        for at in self._template.offsets(series_instance_uid(_RUN, 0, 0)):
            self._put(at, series_instance_uid(self._run, self._association, self.series))
        at = self._one(self._template.offsets("\x20\0\x11\0IS\x08\0", within_head=True)) + 8
        self._put(at, f"{self.series + 1:08d}")

    def _put(self, at: int, text: str) -> None:
        self._prefix[at : at + len(text)] = text.encode()

    @staticmethod
    def _one(offsets: tuple[int, ...]) -> int:
        (offset,) = offsets
        return offset
