"""The tables of character sets; what is decoded by them is proved with the heads, in test_dataset_head."""

from __future__ import annotations

import codecs

from pydicom.charset import CODES_TO_ENCODINGS, STAND_ALONE_ENCODINGS, python_encoding
from twisted.trial.unittest import SynchronousTestCase

from storescp.character_sets import ESCAPES, python_encodings


class TablesTests(SynchronousTestCase):
    """pydicom is the judge."""

    def test_terms(self) -> None:
        """Every Defined Term that pydicom knows is known, and means the same codec."""
        for term, encoding in python_encoding.items():
            (ours,) = python_encodings(term.encode())
            self.assertEqual(codecs.lookup(ours), codecs.lookup(encoding), term)

    def test_escapes(self) -> None:
        """The escape sequences are pydicom's, and choose the codecs that the terms with code extensions mean."""
        self.assertEqual(ESCAPES, CODES_TO_ENCODINGS)
        extended = b"\\".join(term.encode() for term in python_encoding if term.startswith("ISO 2022 IR"))
        self.assertEqual(set(ESCAPES.values()), set(python_encodings(extended)))

    def test_alone(self) -> None:
        """Behind one that goes with no other, pydicom's and only those, further terms do not count."""
        for term in python_encoding:
            alone = len(python_encodings(f"{term}\\ISO 2022 IR 87".encode())) == 1
            self.assertEqual(alone, term in STAND_ALONE_ENCODINGS, term)
