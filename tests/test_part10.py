"""storescp.part10: File Meta Information."""

from __future__ import annotations

import io

from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from twisted.trial.unittest import SynchronousTestCase

from storescp import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from storescp.part10 import FileMeta
from tests.conversation import CT_IMAGE_STORAGE, EXPLICIT_VR_LITTLE_ENDIAN, data_set
from tests.strategies import steady

UIDS = st.from_regex(r"[1-9][0-9]{0,9}(\.[1-9][0-9]{0,8}){0,5}", fullmatch=True)
TITLES = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="\\"), max_size=16)


class FileMetaTests(SynchronousTestCase):
    """File Meta Information, PS3.10 §7.1; pydicom is the judge."""

    @settings(steady, max_examples=50)
    @given(UIDS, UIDS, TITLES, TITLES, UIDS)
    def test_content(self, sop_class: str, syntax: str, calling: str, called: str, instance: str) -> None:
        """It holds what is known of the instance and of us, and its length, whatever the lengths of the values."""
        encoded = FileMeta(sop_class, syntax, calling, called).encode(instance)
        self.assertEqual(encoded[:132], bytes(128) + b"DICM")
        meta = dcmread(io.BytesIO(encoded)).file_meta
        self.assertEqual(
            {element.tag & 0xFFFF: element.value for element in meta if element.VM},
            {
                tag: value
                for tag, value in {
                    0x0000: len(encoded) - 132 - 12,
                    0x0001: b"\0\1",
                    0x0002: sop_class,
                    0x0003: instance,
                    0x0010: syntax,
                    0x0012: IMPLEMENTATION_CLASS_UID,
                    0x0013: IMPLEMENTATION_VERSION_NAME,
                    0x0016: calling,
                    0x0017: calling,
                    0x0018: called,
                }.items()
                if value
            },
        )

    def test_readable(self) -> None:
        """With a data set behind it, it is a file that pydicom reads without being forced."""
        meta = FileMeta(CT_IMAGE_STORAGE, EXPLICIT_VR_LITTLE_ENDIAN, "SCU", "SCP").encode("1.2.3")
        dataset = dcmread(io.BytesIO(meta + data_set("1.2.3")))
        self.assertEqual(
            (dataset.SOPInstanceUID, dataset.file_meta.SendingApplicationEntityTitle), ("1.2.3", "SCU")
        )
