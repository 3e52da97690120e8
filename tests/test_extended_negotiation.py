"""storescp.extended_negotiation: the optional items of the user information."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from pynetdicom.pdu_items import AsynchronousOperationsWindowSubItem
from twisted.trial.unittest import SynchronousTestCase

from storescp.extended_negotiation import (
    MAXIMUM_RELATED,
    CommonExtendedNegotiation,
    ExtendedNegotiation,
    OperationsWindow,
    RoleSelection,
    decoded,
    operations_window,
)
from tests.strategies import steady, uids

CT = "1.2.840.10008.5.1.4.1.1.2"


class ItemTests(SynchronousTestCase):
    """Bytes and values."""

    def test_bytes(self) -> None:
        """The items stand as in PS3.7 Tables D.3-9, D.3-11 and D.3-12."""
        uid = b"\0\x19" + CT.encode()
        self.assertEqual(RoleSelection(CT, scu=True, scp=False).item, (0x54, uid + b"\1\0"))
        self.assertEqual(ExtendedNegotiation(CT, b"\2\0\3").item, (0x56, uid + b"\2\0\3"))
        self.assertEqual(
            CommonExtendedNegotiation(CT, "1.2.3", (CT, "1.4")).item,
            (0x57, uid + b"\0\x051.2.3" + b"\0\x20" + uid + b"\0\x031.4"),
        )

    @given(
        uids, uids, st.lists(uids, max_size=3).map(tuple), st.booleans(), st.booleans(), st.binary(max_size=9)
    )
    @steady
    def test_inverse(
        self, uid: str, other: str, related: tuple[str, ...], scu: bool, scp: bool, data: bytes
    ) -> None:
        """What is decoded is what was encoded."""
        role = RoleSelection(uid, scu, scp)
        self.assertEqual(RoleSelection.decode(role.item[1]), role)
        extended = ExtendedNegotiation(uid, data)
        self.assertEqual(ExtendedNegotiation.decode(extended.item[1]), extended)
        common = CommonExtendedNegotiation(uid, other, related)
        self.assertEqual(CommonExtendedNegotiation.decode(common.item[1]), common)

    @given(st.integers(0, 65535), st.integers(0, 65535))
    @steady
    def test_operations_window(self, invoked: int, performed: int) -> None:
        """The window is what pynetdicom makes of the same numbers; what is decoded is what was encoded."""
        judge = AsynchronousOperationsWindowSubItem()
        judge.maximum_number_operations_invoked = invoked
        judge.maximum_number_operations_performed = performed
        window = OperationsWindow(invoked, performed)
        self.assertEqual((0x53, judge.encode()[4:]), window.item)
        self.assertEqual(OperationsWindow.decode(window.item[1]), window)

    def test_one_window(self) -> None:
        """The first that makes sense is found; none is the synchronous mode, one operation at a time."""
        items = (
            (0x53, b"\0\1\0"),
            (0x54, b"\0\1\0\1"),
            OperationsWindow(5, 6).item,
            OperationsWindow(7, 8).item,
        )
        self.assertEqual(operations_window(items), OperationsWindow(5, 6))
        self.assertIsNone(operations_window(items[:2]))
        self.assertEqual(OperationsWindow(), OperationsWindow(1, 1))

    def test_tolerance(self) -> None:
        """Padding around UIDs, and what a later version has behind the common item, mean nothing."""
        self.assertEqual(
            RoleSelection.decode(b"\0\x061.2.3\0\1\1"), RoleSelection("1.2.3", scu=True, scp=True)
        )
        common = CommonExtendedNegotiation("1.2", "1.3")
        self.assertEqual(CommonExtendedNegotiation.decode(common.item[1] + b"new"), common)

    @given(
        st.sampled_from((RoleSelection, ExtendedNegotiation, CommonExtendedNegotiation)),
        st.binary(max_size=40),
    )
    @steady
    def test_anything(
        self, kind: type[RoleSelection | ExtendedNegotiation | CommonExtendedNegotiation], value: bytes
    ) -> None:
        """Any bytes are an item, or a ValueError."""
        try:
            item = kind.decode(value)
        except ValueError:
            return
        self.assertEqual(kind.decode(item.item[1]), item)

    def test_many_related(self) -> None:
        """Of so many related classes nothing would be gained but the time that they cost."""
        for number, fits in ((MAXIMUM_RELATED, True), (MAXIMUM_RELATED + 1, False)):
            value = CommonExtendedNegotiation("1.2", "1.3", ("1.4",) * number).item[1]
            if fits:
                self.assertEqual(
                    len(CommonExtendedNegotiation.decode(value).related_general_sop_class_uids), number
                )
            else:
                self.assertRaises(ValueError, CommonExtendedNegotiation.decode, value)

    def test_decoded(self) -> None:
        """Only the items of the kind are found, the first of each class, and none that makes no sense."""
        first, second = RoleSelection("1.2", scu=True, scp=False), RoleSelection("1.2", scu=False, scp=True)
        other = RoleSelection("1.3", scu=False, scp=False)
        items = ((0x54, b"\0"), first.item, ExtendedNegotiation("1.4", b"\0\0").item, second.item, other.item)
        self.assertEqual(decoded(RoleSelection, items), {"1.2": first, "1.3": other})
