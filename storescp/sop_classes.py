"""Which SOP classes can be stored, how operators name them, and which transfer syntaxes they travel in.

Everything here is a fact or is derived from pydicom's copy of PS3.6 Annex A, the registry of UIDs. No I/O.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from importlib.machinery import PathFinder
from importlib.util import find_spec, module_from_spec
from types import MappingProxyType
from typing import Final

__all__ = [
    "DEFLATED_TRANSFER_SYNTAXES",
    "MODALITY_GROUPS",
    "PLAIN_TRANSFER_SYNTAXES",
    "STORAGE_COMMITMENT",
    "STORAGE_COMMITMENT_INSTANCE",
    "STORAGE_SOP_CLASSES",
    "TRANSFER_SYNTAXES",
    "VERIFICATION",
    "is_registered",
    "is_storage",
    "modality_group",
    "resolve_sop_classes",
    "resolve_transfer_syntaxes",
]

VERIFICATION: Final = "1.2.840.10008.1.1"

#: Storage Commitment Push Model, PS3.4 Annex J, and its only instance (PS3.4 §J.3.5).
STORAGE_COMMITMENT: Final = "1.2.840.10008.1.20.1"
STORAGE_COMMITMENT_INSTANCE: Final = "1.2.840.10008.1.20.1.1"

#: Implicit VR Little Endian, Explicit VR Little Endian and, retired, Explicit VR Big Endian: those of data sets that
#: are no instances.
PLAIN_TRANSFER_SYNTAXES: Final = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")

# The ends of a keyword that say which variant of a family a SOP class is, not which family.
_VARIANT = r"Storage(ForPresentation|ForProcessing|Retired|Trial)?"

_NOT_STORAGE_SERVICE = frozenset(
    {
        "1.2.840.10008.1.3.10",  # Media Storage Directory: DICOMDIR, never sent
        # Non-Patient Object Storage, PS3.4 Annex GG: a service class of its own; its objects have no Study.
        "1.2.840.10008.5.1.4.1.1.200.1",  # CT Defined Procedure Protocol
        "1.2.840.10008.5.1.4.1.1.200.3",  # Protocol Approval
        "1.2.840.10008.5.1.4.1.1.200.7",  # XA Defined Procedure Protocol
        "1.2.840.10008.5.1.4.1.1.201.1",  # Inventory
        "1.2.840.10008.5.1.4.38.1",  # Hanging Protocol
        "1.2.840.10008.5.1.4.39.1",  # Color Palette
        "1.2.840.10008.5.1.4.43.1",  # Generic Implant Template
        "1.2.840.10008.5.1.4.44.1",  # Implant Assembly Template
        "1.2.840.10008.5.1.4.45.1",  # Implant Template Group
    }
)

# Registered as transfer syntaxes, but what they encode is no sequence of data elements (PS3.5 §7).
_NOT_DATA_SETS = frozenset(
    {
        "1.2.840.10008.1.2.6.1",  # RFC 2557 MIME encapsulation
        "1.2.840.10008.1.2.6.2",  # XML Encoding
        "1.2.840.10008.1.20",  # Papyrus 3: a file format of its own
    }
)


def _pydicoms_dictionary() -> dict[str, tuple[str, str, str, str, str]]:
    """UID -> name, type, information, "Retired" and keyword, without importing the package around it.

    That, with all that it imports, would take a quarter of the server's start, and 11 MiB (21 MiB where numpy is).
    """
    package = find_spec("pydicom")
    spec = package and PathFinder.find_spec("_uid_dict", package.submodule_search_locations)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError("No module named 'pydicom'", name="pydicom")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    table: dict[str, tuple[str, str, str, str, str]] = module.UID_dictionary
    return table


# In the standard since, and not yet in every pydicom: PS3.5 §A.4.12, encapsulated, each frame deflated.
_REGISTERED = {
    **_pydicoms_dictionary(),
    "1.2.840.10008.1.2.8.1": (
        "Deflated Image Frame Compression",
        "Transfer Syntax",
        "",
        "",
        "DeflatedImageFrameCompression",
    ),
}

_KEYWORDS: dict[str, str] = {
    uid: keyword
    for uid, (_, kind, _, _, keyword) in _REGISTERED.items()
    if (kind == "SOP Class" and re.search(_VARIANT + r"\Z", keyword) and uid not in _NOT_STORAGE_SERVICE)
    or (kind == "Transfer Syntax" and uid not in _NOT_DATA_SETS)
}

STORAGE_SOP_CLASSES: Final[Mapping[str, str]] = MappingProxyType(
    {uid: _REGISTERED[uid][0] for uid in _KEYWORDS if _REGISTERED[uid][1] == "SOP Class"}
)
"""UID -> name of every SOP class of the Storage Service Class (PS3.4 Annex B), retired ones too."""

TRANSFER_SYNTAXES: Final[Mapping[str, str]] = MappingProxyType(
    {uid: _REGISTERED[uid][0] for uid in _KEYWORDS if _REGISTERED[uid][1] == "Transfer Syntax"}
)
"""UID -> name of every transfer syntax (PS3.5 Annex A) in which a data set can be sent, retired ones too."""

DEFLATED_TRANSFER_SYNTAXES: Final = frozenset(
    {
        "1.2.840.10008.1.2.1.99",  # PS3.5 §A.5
        "1.2.840.10008.1.2.4.95",  # JPIP Referenced Deflate, PS3.5 §A.7
        "1.2.840.10008.1.2.4.205",  # JPIP HTJ2K Referenced Deflate
    }
)
"""The transfer syntaxes whose whole data set is a deflated stream (RFC 1951)."""

# Group -> what the keywords of its family match, without "(LegacyConverted)Enhanced" before and _VARIANT
# behind, so that a new member of a family joins its group by itself. Names are the terms of Modality
# (0008,0060), PS3.3 §C.7.3.1.1.1, but for XR, VL, RT and WAVEFORM, which sum up several. A class may be in
# several groups; the first is the one it is called by, so narrow groups stand before wide ones.
_FAMILIES: dict[str, str] = {
    "CT": r"CTImage",
    "MR": r"MR(Color)?Image|MRSpectroscopy",
    "PT": r"(PositronEmissionTomography|PET)Image|StandalonePETCurve",
    "NM": r"NuclearMedicineImage",
    "US": r"Ultrasound(MultiFrame)?Image|USVolume|PhotoacousticImage",
    "CR": r"ComputedRadiographyImage",
    "DX": r"DigitalXRayImage|XRay3DCraniofacialImage",
    "MG": r"DigitalMammographyXRayImage|BreastTomosynthesisImage|BreastProjectionXRayImage",
    "IO": r"DigitalIntraOralXRayImage",
    "XA": r"XRay(3D)?Angiographic(BiPlane)?Image|XAImage",
    "RF": r"XRayRadiofluoroscopicImage|XRFImage",
    "XR": r"XRay(3D)?Angiographic(BiPlane)?Image|XAImage|XRayRadiofluoroscopicImage|XRFImage",
    "IVOCT": r"IntravascularOpticalCoherenceTomographyImage",
    "SC": r"(MultiFrame\w+)?SecondaryCaptureImage",
    "HC": r"Hardcopy\w+Image|StoredPrint",
    "ES": r"(VL|Video)EndoscopicImage",
    "GM": r"(VL|Video)MicroscopicImage",
    "SM": r"VLSlideCoordinatesMicroscopicImage|VLWholeSlideMicroscopyImage",
    "XC": r"(VL|Video)PhotographicImage",
    "DMS": r"DermoscopicPhotographyImage",
    "CFM": r"ConfocalMicroscopy\w*Image",
    "VL": r"(VL|Video|Dermoscopic|ConfocalMicroscopy)\w*Image",
    "ANN": r"MicroscopyBulkSimpleAnnotations",
    "KO": r"KeyObjectSelectionDocument",
    "SR": r"\w+SR|ProcedureLog|SpectaclePrescriptionReport|MacularGridThicknessAndVolumeReport",
    "OPT": r"OphthalmicTomographyImage|OphthalmicOpticalCoherenceTomography\w+",
    "OP": r"(WideField)?Ophthalmic\w+|StereometricRelationship|CornealTopographyMap|"
    r"IntraocularLensCalculations|"
    r"(Lensometry|Autorefraction|Keratometry|SubjectiveRefraction|VisualAcuity)Measurements|"
    r"SpectaclePrescriptionReport|MacularGridThicknessAndVolumeReport",
    "PR": r"\w+PresentationState",
    "SEG": r"\w*Segmentation",
    "REG": r"(Deformable)?SpatialRegistration",
    "FID": r"SpatialFiducials",
    "RWV": r"RealWorldValueMapping",
    "ASMT": r"ContentAssessmentResults",
    "OSS": r"SurfaceScan\w+",
    "M3D": r"Encapsulated(STL|OBJ|MTL)",
    "DOC": r"Encapsulated\w+",
    "ECG": r"\w+ECGWaveform",
    "HD": r"HemodynamicWaveform|ArterialPulseWaveform",
    "EPS": r"CardiacElectrophysiologyWaveform",
    "AU": r"\w+AudioWaveform",
    "RESP": r"(Multichannel)?RespiratoryWaveform",
    "EEG": r"\w+ElectroencephalogramWaveform",
    "EMG": r"ElectromyogramWaveform",
    "EOG": r"ElectrooculogramWaveform",
    "POS": r"BodyPositionWaveform",
    "WAVEFORM": r"\w*Waveform",
    "RTIMAGE": r"RTImage|ContinuousRTImage",
    "RTDOSE": r"RTDose",
    "RTSTRUCT": r"RTStructureSet",
    "RTPLAN": r"RT(Ion)?Plan",
    "RTRECORD": r"RT\w+TreatmentRecord|RTTreatmentSummaryRecord",
    "RT": r"RT\w+|ContinuousRTImage|\w+Radiation(Record)?",
    "CTPROTOCOL": r"CTPerformedProcedureProtocol",
    "XAPROTOCOL": r"XAPerformedProcedureProtocol",
}


# What a SOP class is called in its family: the keyword without the variant, and without "Enhanced", too.
_NAMES = [(re.sub(_VARIANT + r"\Z", "", _KEYWORDS[uid]), uid) for uid in STORAGE_SOP_CLASSES]
_NAMES += [(re.sub(r"\A(LegacyConverted)?Enhanced", "", name), uid) for name, uid in _NAMES]


def _members(family: str) -> frozenset[str]:
    matches = re.compile(family).fullmatch
    return frozenset(uid for name, uid in _NAMES if matches(name))


MODALITY_GROUPS: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {group: _members(family) for group, family in _FAMILIES.items()}
)
"""Name of a group ("CT") -> the UIDs of its storage SOP classes: plain, enhanced, multi-frame, for processing
and for presentation, retired. Classes that belong to no modality (raw data, parametric maps, standalone
overlays) or to no patient (DICOS, DICONDE) are in none: they are named by keyword."""

_GROUP_OF: dict[str, str] = {
    uid: group for group, members in reversed(list(MODALITY_GROUPS.items())) for uid in members
}

# What an operator may write, in lower case -> UIDs.
_SOP_CLASS_NAMES: dict[str, frozenset[str]] = {
    "all": frozenset(STORAGE_SOP_CLASSES),
    **{group.lower(): members for group, members in MODALITY_GROUPS.items()},
    **{_KEYWORDS[uid].lower(): frozenset((uid,)) for uid in STORAGE_SOP_CLASSES},
    **{uid: frozenset((uid,)) for uid in STORAGE_SOP_CLASSES},
}
_TRANSFER_SYNTAX_NAMES: dict[str, str] = {
    **{_KEYWORDS[uid].lower(): uid for uid in TRANSFER_SYNTAXES},
    **{uid: uid for uid in TRANSFER_SYNTAXES},
}

# A UID (PS3.5 §9.1) that was not given out by the standard.
_is_private_uid = re.compile(r"(?=.{5,64}\Z)(?!1\.2\.840\.10008(\.|\Z))[0-2](\.(0|[1-9][0-9]*))+").fullmatch


def is_registered(uid: str) -> bool:
    """Whether PS3.6 Annex A lists *uid*, as whatever."""
    return uid in _REGISTERED


def keyword(uid: str) -> str:
    """What PS3.6 Annex A calls *uid*, in one word; else itself, fit for a line of the log."""
    if uid in _REGISTERED:
        return _REGISTERED[uid][4] or uid
    return uid if _is_private_uid(uid) else repr(uid)


def is_storage(sop_class_uid: str) -> bool:
    """Whether this is the class of something to be stored, as far as PS3.6 knows it."""
    return sop_class_uid in STORAGE_SOP_CLASSES or sop_class_uid not in _REGISTERED


def modality_group(sop_class_uid: str) -> str | None:
    """The narrowest group that a storage SOP class is in ("XA" before "XR"), or None. For log lines."""
    return _GROUP_OF.get(sop_class_uid)


def resolve_sop_classes(names: Iterable[str]) -> frozenset[str]:
    """UIDs of the storage SOP classes meant by modality groups, keywords (in any case), UIDs and "all".

    A UID outside the standard's own root is taken at its word: private SOP classes are in no dictionary.
    Raises ValueError, one line, which names the first name that is unknown and the nearest known one.
    """
    resolved: set[str] = set()
    for name in names:
        members = _SOP_CLASS_NAMES.get(name.lower())
        if members is not None:
            resolved |= members
        elif _is_private_uid(name):
            resolved.add(name)
        else:
            raise _unknown(
                name, "a modality group, a storage SOP class (keyword or UID) or 'all'", _SOP_CLASS_NAMES
            )
    return frozenset(resolved)


def resolve_transfer_syntaxes(names: Iterable[str]) -> tuple[str, ...]:
    """UIDs of the transfer syntaxes meant by keywords (in any case) and UIDs, in order, without repetitions.

    Raises ValueError, one line, which names the first name that is unknown and the nearest known one.
    """
    resolved: dict[str, None] = {}
    for name in names:
        uid = _TRANSFER_SYNTAX_NAMES.get(name.lower())
        if uid is None:
            raise _unknown(name, "a transfer syntax (keyword or UID)", _TRANSFER_SYNTAX_NAMES)
        resolved[uid] = None
    return tuple(resolved)


def _unknown(name: str, expected: str, known: Iterable[str]) -> ValueError:
    nearest = difflib.get_close_matches(name.lower()[:100], list(known), n=1)
    hint = f" (nearest known: {_spelled(nearest[0])})" if nearest else ""
    return ValueError(f"expected {expected}, got {name!r:.60}{hint}")


def _spelled(name: str) -> str:
    """A name as the standard spells it, from its lower case form."""
    spellings = (*MODALITY_GROUPS, *_KEYWORDS.values())
    return next((spelling for spelling in spellings if spelling.lower() == name), name)
