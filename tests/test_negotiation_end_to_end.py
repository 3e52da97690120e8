"""What the real twistd negotiates with pynetdicom, and stores: classes that no dictionary has."""

from __future__ import annotations

import pydicom
from pydicom.uid import UID
from pynetdicom import AE
from pynetdicom.pdu_primitives import (
    SCP_SCU_RoleSelectionNegotiation,
    SOPClassCommonExtendedNegotiation,
    SOPClassExtendedNegotiation,
)
from twisted.trial.unittest import SynchronousTestCase

from tests.pynetdicom_scu import associate
from tests.raw_scu import CT, EXPLICIT, IMPLICIT, MR
from tests.server import Server
from tests.test_end_to_end import DATA

NEW, PATTERN, PRIVATE = (
    "1.2.840.10008.5.1.4.1.1.999.1",
    "1.2.840.10008.5.1.4.1.1.998.7",
    "1.3.12.2.1107.5.9.1",
)


class UnknownClassesTests(SynchronousTestCase):
    """From the settings to the index."""

    def test_stored(self) -> None:
        """A class that the sender declares, and one that a pattern matches, are stored by any of two workers, indexed
        and named as others are; one that is neither is refused. A class's own preference decides on its syntax.
        """
        server = Server(
            self,
            *("--accept", "CT,declared", "--accept", "1.2.840.10008.5.1.4.1.1.998.*", "--workers", "2"),
            *("--prefer", EXPLICIT, "--prefer-for", "CT=proposed"),
        )
        data = pydicom.dcmread(DATA / "CT_small.dcm")
        for number in range(2):  # each worker takes one, or one takes both: it must not matter
            entity = AE("MODALITY")
            for uid in (NEW, PATTERN, PRIVATE, MR, CT):
                entity.add_requested_context(uid, [IMPLICIT, EXPLICIT])
            said = SOPClassCommonExtendedNegotiation()
            said.sop_class_uid, said.service_class_uid = UID(NEW), UID("1.2.840.10008.4.2")
            said.related_general_sop_class_identification = [UID(CT)]
            extended = SOPClassExtendedNegotiation()
            extended.sop_class_uid, extended.service_class_application_information = UID(NEW), b"\3\0\0\0\2"
            role = SCP_SCU_RoleSelectionNegotiation()
            role.sop_class_uid, role.scu_role, role.scp_role = UID(PATTERN), True, True
            association = associate(entity, server.port, ext_neg=[said, extended, role])
            self.assertTrue(association.is_established)
            accepted = {cx.abstract_syntax: cx.transfer_syntax[0] for cx in association.accepted_contexts}
            self.assertEqual(accepted, {NEW: EXPLICIT, PATTERN: EXPLICIT, CT: IMPLICIT})
            self.assertEqual(
                {context.abstract_syntax: context.result for context in association.rejected_contexts},
                {PRIVATE: 3, MR: 3},
            )
            self.assertEqual(association.acceptor.sop_class_extended, {NEW: b"\2\0\3\0\0"})
            self.assertEqual(
                [
                    (r.sop_class_uid, r.scu_role, r.scp_role)
                    for r in association.acceptor.role_selection.values()
                ],
                [(PATTERN, True, False)],
            )
            for sop_class in (NEW, PATTERN):
                data.SOPClassUID = sop_class
                data.SOPInstanceUID = f"1.2.3.{number}.{sop_class[-1]}"
                self.assertEqual(association.send_c_store(data).Status, 0)
            association.release()
        rows = server.rows("SELECT sop_class_uid, sop_instance_uid, path FROM instances ORDER BY 2")
        self.assertEqual(
            [row[:2] for row in rows],
            [(sop_class, f"1.2.3.{n}.{sop_class[-1]}") for n in range(2) for sop_class in (NEW, PATTERN)],
        )
        self.assertEqual({path for _, _, path in rows}, set(server.files()))
        for found, instance, path in rows:
            stored = pydicom.dcmread(server.storage / str(path))
            self.assertEqual((stored.SOPClassUID, stored.SOPInstanceUID), (found, instance))
            self.assertEqual(stored.file_meta.MediaStorageSOPClassUID, found)
        self.assertEqual(server.stop()["stored"], 4)
