"""storescp.presentation: what operators say of SOP classes and transfer syntaxes."""

from __future__ import annotations

from pydicom._uid_dict import UID_dictionary
from twisted.trial.unittest import SynchronousTestCase

from storescp.extended_negotiation import STORAGE_SERVICE_CLASS, CommonExtendedNegotiation
from storescp.presentation import (
    COMPRESSED,
    UNCOMPRESSED,
    AcceptedClasses,
    resolve_accepted,
    resolve_preference,
)
from storescp.sop_classes import MODALITY_GROUPS, STORAGE_SOP_CLASSES, TRANSFER_SYNTAXES, is_registered

CT, MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"
NEW, PRIVATE = "1.2.840.10008.5.1.4.1.1.999.1", "1.3.12.2.1107.5.9.1"
FIND = "1.2.840.10008.5.1.4.1.2.1.1"


class AcceptedClassesTests(SynchronousTestCase):
    """SOP classes."""

    def test_takes(self) -> None:
        """Classes that the standard lists are taken by name or pattern, others as the words say."""
        for names, expected in (
            (["all"], {CT, MR}),
            (["CT", "private"], {CT, PRIVATE}),
            (["CT", "Unknown"], {CT, NEW, PRIVATE}),
            (["1.2.840.10008.5.1.4.1.1.*"], {CT, MR, NEW}),
            (["1.2.840.10008.5.1.4.1.1.2*"], {CT}),
            (["1.2.840.*.999.1", "1.3.12.*", "MR"], {MR, NEW, PRIVATE}),
            (["*"], {CT, MR, NEW, PRIVATE}),
            (["*.2"], {CT}),
            ([PRIVATE], {PRIVATE}),
            (["declared", "CT"], {CT}),
        ):
            accepted = resolve_accepted(names)
            self.assertEqual({uid for uid in (CT, MR, NEW, PRIVATE) if accepted.takes(uid)}, expected, names)

    def test_never(self) -> None:
        """What the standard lists as something else is never taken, nor what is no UID."""
        everything = resolve_accepted(["all", "*", "unknown", "private", "declared"])
        listed = set(filter(is_registered, UID_dictionary)) - set(STORAGE_SOP_CLASSES)
        self.assertIn(FIND, listed)
        for uid in (*listed, "", "1", "CT", "unknown", "*", "1.2.3.x", "1.2..3", "9.1", "1." + "2" * 63):
            said = CommonExtendedNegotiation(uid, STORAGE_SERVICE_CLASS, (CT,))
            self.assertFalse(everything.takes(uid, said), uid)

    def test_declared(self) -> None:
        """A class is taken for what the sender says of it only if that is asked for, and only if it is unknown."""
        accepted = resolve_accepted(["declared", "CT", "1.9.*"])
        for uid, service, related, expected in (
            (NEW, STORAGE_SERVICE_CLASS, (), True),
            (NEW, "1.2", (MR, CT), True),
            (NEW, "1.2", ("1.9.1",), True),
            (NEW, "1.2", (MR, FIND), False),
            (MR, STORAGE_SERVICE_CLASS, (CT,), False),
        ):
            said = CommonExtendedNegotiation(uid, service, related)
            self.assertEqual(accepted.takes(uid, said), expected, said)
            self.assertFalse(resolve_accepted(["CT", "1.9.*"]).takes(uid, said))

    def test_union(self) -> None:
        """Together they take what each takes."""
        both = resolve_accepted(["CT", "1.2.*"]) | resolve_accepted(["private", "1.3.*"])
        self.assertEqual(
            both,
            AcceptedClasses(
                MODALITY_GROUPS["CT"] | set(STORAGE_SOP_CLASSES),
                frozenset(("1.2.*", "1.3.*")),
                frozenset(("private",)),
            ),
        )

    def test_mistakes(self) -> None:
        """A name that is unknown is told, with all that might have been meant."""
        message = str(self.assertRaises(ValueError, resolve_accepted, ["CT", "unknwon"]))
        self.assertIn("got 'unknwon'", message)
        for word in ("1.2.840.10008.5.1.4.1.1.*", "'unknown'", "'private'", "'declared'"):
            self.assertIn(word, message)


class PreferenceTests(SynchronousTestCase):
    """Transfer syntaxes."""

    def test_groups(self) -> None:
        """Compressed and uncompressed have nothing in common, and with the rest are all there are."""
        self.assertEqual(COMPRESSED & UNCOMPRESSED, set())
        self.assertLessEqual(COMPRESSED | UNCOMPRESSED, TRANSFER_SYNTAXES.keys())
        rest = TRANSFER_SYNTAXES.keys() - COMPRESSED - UNCOMPRESSED
        self.assertTrue(
            all(TRANSFER_SYNTAXES[uid].startswith(("JPIP", "SMPTE")) for uid in rest),
            {uid: TRANSFER_SYNTAXES[uid] for uid in rest},
        )

    def test_resolve(self) -> None:
        """Names are ranks in their order, groups one rank each, and a repetition is none."""
        self.assertEqual(
            resolve_preference(["RLELossless", "COMPRESSED", "1.2.840.10008.1.2.5", "uncompressed"]),
            (frozenset(("1.2.840.10008.1.2.5",)), COMPRESSED, UNCOMPRESSED),
        )
        self.assertRaises(ValueError, resolve_preference, ["compresed"])
