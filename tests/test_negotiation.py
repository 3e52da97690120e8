"""storescp.negotiation: which answer an association request gets."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from storescp import negotiation, pdu
from storescp.extended_negotiation import (
    MAXIMUM_ITEMS,
    STORAGE_SERVICE_CLASS,
    CommonExtendedNegotiation,
    ExtendedNegotiation,
    OperationsWindow,
    RoleSelection,
)
from storescp.negotiation import AcceptedContext, Policy, accepted_contexts, negotiate, refusals
from storescp.pdu import AAssociateAC, AAssociateRJ, AAssociateRQ, PresentationContext, UserInformation
from storescp.presentation import AcceptedClasses, Preference
from tests.strategies import associate_requests, steady

CT, MR, ECHO = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.1.1"
IMPLICIT, EXPLICIT, JPEG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.70"
POLICY = Policy(
    called_ae_titles=None,
    abstract_syntaxes=frozenset((CT, ECHO)),
    transfer_syntaxes=frozenset((IMPLICIT, EXPLICIT, JPEG)),
    maximum_length=262144,
    implementation_class_uid="1.2.3.4",
    implementation_version_name="US",
)


def request(*contexts: tuple[int, str, tuple[str, ...]]) -> AAssociateRQ:
    """A request that proposes *contexts*."""
    return AAssociateRQ("SCP", "SCU", tuple(PresentationContext(*context) for context in contexts))


def _ranks(*syntaxes: str) -> Preference:
    """Each syntax a rank."""
    return tuple(frozenset((syntax,)) for syntax in syntaxes)


class NegotiateTests(SynchronousTestCase):
    """Rejections, and results for contexts."""

    def results(
        self, policy: Policy, *contexts: tuple[int, str, tuple[str, ...]]
    ) -> list[tuple[int, int, str]]:
        answer = negotiate(request(*contexts), policy)
        assert isinstance(answer, AAssociateAC)
        return [(result.id, result.result, result.transfer_syntax) for result in answer.presentation_contexts]

    def test_results(self) -> None:
        """Each context gets its result in the order proposed: 0 accepted, 3 and 4 for the syntax we lack."""
        self.assertEqual(
            self.results(
                POLICY,
                (9, MR, (EXPLICIT,)),
                (1, CT, ("1.2", EXPLICIT, IMPLICIT)),
                (255, CT, ("1.2", "1.3")),
                (3, ECHO, (IMPLICIT,)),
                (5, MR, ("1.2",)),
                (7, CT, ()),
                (11, "", ()),
            ),
            [
                (9, 3, EXPLICIT),
                (1, 0, EXPLICIT),
                (255, 4, "1.2"),
                (3, 0, IMPLICIT),
                (5, 3, "1.2"),
                (7, 4, IMPLICIT),
                (11, 3, IMPLICIT),
            ],
        )

    def test_preference(self) -> None:
        """Ours decides where it can, in its order; where it cannot, the first proposed that we take."""
        for prefer, proposed, chosen in (
            ((), (JPEG, IMPLICIT), JPEG),
            ((), ("1.2", IMPLICIT, JPEG), IMPLICIT),
            ((EXPLICIT, IMPLICIT), (JPEG, IMPLICIT, EXPLICIT), EXPLICIT),
            ((EXPLICIT, IMPLICIT), (JPEG, IMPLICIT), IMPLICIT),
            ((EXPLICIT,), (JPEG, IMPLICIT), JPEG),
            (("1.2", IMPLICIT), (JPEG, "1.2", IMPLICIT), IMPLICIT),
        ):
            self.assertEqual(
                self.results(replace(POLICY, prefer=_ranks(*prefer)), (1, CT, proposed)), [(1, 0, chosen)]
            )

    def test_preference_of_several(self) -> None:
        """Among equals the order of the requestor decides; what some SOP classes have goes for these alone."""
        policy = replace(
            POLICY,
            abstract_syntaxes=frozenset((CT, MR)),
            prefer=(frozenset((JPEG,)),),
            prefer_for={CT: (frozenset((IMPLICIT, EXPLICIT)),), "1.2": ()},
        )
        proposed = (JPEG, EXPLICIT, IMPLICIT)
        self.assertEqual(
            self.results(policy, (1, CT, proposed), (3, MR, proposed[::-1])), [(1, 0, EXPLICIT), (3, 0, JPEG)]
        )
        self.assertEqual(
            self.results(replace(policy, prefer_for={CT: ()}), (1, CT, proposed[::-1])), [(1, 0, IMPLICIT)]
        )

    def test_many_contexts(self) -> None:
        """128 contexts of one SOP class are each answered, and accepted, for themselves."""
        contexts = [(2 * n + 1, CT, (JPEG, EXPLICIT) if n % 2 else (IMPLICIT,)) for n in range(128)]
        self.assertEqual(
            self.results(POLICY, *contexts),
            [(number, 0, syntaxes[0]) for number, _, syntaxes in contexts],
        )

    def items(self, *items: tuple[int, bytes], policy: Policy = POLICY) -> AAssociateAC:
        """The answer to a request with these items for a CT, a CT again, an MR and an echo."""
        asked = request((1, CT, (JPEG,)), (3, CT, ("1.2",)), (5, MR, (JPEG,)), (7, ECHO, (IMPLICIT,)))
        answer = negotiate(replace(asked, user_information=UserInformation(other=items)), policy)
        assert isinstance(answer, AAssociateAC)
        return answer

    def test_role_selection(self) -> None:
        """The requestor may be the SCU, where it proposes that, and never the SCP, of what is accepted."""
        roles = [RoleSelection(uid, scu=True, scp=True) for uid in (ECHO, CT, MR, "1.2.3")]
        roles.append(RoleSelection(CT, scu=False, scp=True))  # there may be but one
        answer = self.items(*(role.item for role in roles))
        self.assertEqual([context.result for context in answer.presentation_contexts], [0, 4, 3, 0])
        self.assertEqual(
            answer.user_information.other,
            tuple(RoleSelection(uid, scu=True, scp=False).item for uid in (ECHO, CT)),
        )

    def test_role_of_a_retriever(self) -> None:
        """Who would be the SCP alone, as one that means C-GET, has its context refused by the user: result 1."""
        answer = self.items(RoleSelection(CT, scu=False, scp=True).item)
        self.assertEqual([context.result for context in answer.presentation_contexts], [1, 1, 3, 0])
        self.assertEqual(answer.user_information.other, ())

    def test_extended_negotiation(self) -> None:
        """For storage: level 2, bit preserving, no coercion. Other classes, and refused ones, are not answered."""
        answer = self.items(*(ExtendedNegotiation(uid, b"\3\0\0\0\2").item for uid in (CT, ECHO, MR)))
        self.assertEqual(answer.user_information.other, ((0x56, b"\0\x19" + CT.encode() + b"\2\0\3\0\0"),))

    def test_common_extended_negotiation(self) -> None:
        """What a requestor says of an unknown class counts where the settings say so; it is not answered."""
        declared = AcceptedClasses(frozenset((CT,)), others=frozenset(("declared",)))
        new = "1.2.840.10008.5.1.4.1.1.999.1"
        asked = request((1, new, (JPEG,)), (3, CT, (JPEG,)))
        for service, related, policy, expected in (
            (STORAGE_SERVICE_CLASS, (), replace(POLICY, accept=declared), 0),
            ("1.2.3", ("1.2", CT), replace(POLICY, accept=declared), 0),
            ("1.2.3", (MR, ECHO), replace(POLICY, accept=declared), 3),
            (STORAGE_SERVICE_CLASS, (CT,), POLICY, 3),
        ):
            said = CommonExtendedNegotiation(new, service, related)
            answer = negotiate(replace(asked, user_information=UserInformation(other=(said.item,))), policy)
            assert isinstance(answer, AAssociateAC)
            self.assertEqual([context.result for context in answer.presentation_contexts], [expected, 0])
            self.assertEqual(answer.user_information.other, ())

    def test_many_items(self) -> None:
        """What comes after more items than there are reasons for is not looked at."""
        nothing = ((0x99, b""),) * (MAXIMUM_ITEMS - 1)
        role = RoleSelection(CT, scu=True, scp=False).item
        self.assertEqual(self.items(*nothing, role).user_information.other, (role,))
        self.assertEqual(self.items(*nothing, nothing[0], role).user_information.other, ())

    def test_unreadable_items(self) -> None:
        """Items that make no sense count as absent."""
        items = [
            (kind, value)
            for kind in (0x54, 0x56, 0x57)
            for value in (b"", b"\0", b"\0\2\xff\xff", b"\0\x09x")
        ]
        answer = self.items(*items, (0x54, RoleSelection(CT, scu=True, scp=False).item[1] + b"\1"))
        self.assertEqual([context.result for context in answer.presentation_contexts], [0, 4, 3, 0])
        self.assertEqual(answer.user_information.other, ())

    def test_operations_window(self) -> None:
        """A window is answered when it is asked for: no more than asked, nor than ours; we invoke one at a time."""
        for bound, proposed, expected in (
            (64, (8, 1), (8, 1)),
            (64, (64, 0), (64, 1)),
            (64, (65, 5), (64, 1)),
            (64, (0, 0), (64, 1)),
            (64, (1, 1), (1, 1)),
            (1, (0, 0), (1, 1)),
            (65535, (65535, 65535), (65535, 1)),
        ):
            policy = replace(POLICY, operations_window=bound)
            answer = self.items(OperationsWindow(*proposed).item, policy=policy)
            self.assertEqual(answer.user_information.other, (OperationsWindow(*expected).item,))
        self.assertEqual(self.items(policy=policy).user_information.other, ())

    def test_acceptance(self) -> None:
        """The answer repeats the titles, and tells who we are and what we take; nothing else is answered."""
        user = UserInformation(16384, "1.9", "PEER", ((0x58, b"\1\1\0\0\0\0"), (0x99, b"?")))
        answer = negotiate(replace(request((1, CT, (JPEG,))), user_information=user), POLICY)
        assert isinstance(answer, AAssociateAC)
        self.assertEqual((answer.called_ae_title, answer.calling_ae_title), ("SCP", "SCU"))
        self.assertEqual(answer.user_information, UserInformation(262144, "1.2.3.4", "US"))
        self.assertEqual(answer.application_context_name, "1.2.840.10008.3.1.1.1")
        self.assertEqual(answer.protocol_version, 1)

    def test_rejections(self) -> None:
        """Each refusal is the one of PS3.8 Table 9-21, has words for the log, and the gravest comes first."""
        picky = replace(POLICY, called_ae_titles=frozenset(("SCP",)))
        dicom = pdu.APPLICATION_CONTEXT_NAME
        for called, calling, application_context_name, policy, expected in (
            ("SCP", "SCU", "1.2.3", POLICY, (1, 1, 2)),
            ("OTHER", "SCU", "", picky, (1, 1, 2)),
            ("OTHER", "SCU", dicom, picky, (1, 1, 7)),
            ("scp", "SCU", dicom, picky, (1, 1, 7)),
            ("", "A\nB", dicom, picky, (1, 1, 7)),
            ("SC\rP", "SCU", dicom, POLICY, (1, 1, 7)),
            ("SCP", "S\x1bCU", dicom, POLICY, (1, 1, 3)),
            ("SCP", "S\0CU", dicom, POLICY, (1, 1, 3)),
            ("SCP", "S\x85CU", dicom, picky, (1, 1, 3)),
            ("OTHER", "SCU", dicom, POLICY, None),
            ("SCP", "any one, M\xfcller", dicom, picky, None),
        ):
            answer = negotiate(
                AAssociateRQ(called, calling, (), application_context_name=application_context_name), policy
            )
            if expected is None:
                self.assertIsInstance(answer, AAssociateAC, (called, calling))
            else:
                self.assertEqual(answer, AAssociateRJ(*expected), (called, calling))
                assert isinstance(answer, AAssociateRJ)
                self.assertTrue(negotiation.REJECT_REASONS[answer])
        self.assertEqual(negotiation.LOCAL_LIMIT_EXCEEDED, AAssociateRJ(2, 3, 2))

    def test_accepted_contexts(self) -> None:
        """Messages may travel on accepted contexts alone, under the syntaxes agreed on."""
        asked = request((1, CT, (JPEG,)), (3, MR, (JPEG,)), (5, CT, ("1.2",)), (7, CT, ("1.2", IMPLICIT)))
        answer = negotiate(asked, POLICY)
        assert isinstance(answer, AAssociateAC)
        self.assertEqual(
            accepted_contexts(asked, answer), {1: AcceptedContext(CT, JPEG), 7: AcceptedContext(CT, IMPLICIT)}
        )

    def test_refusals(self) -> None:
        """The classes of which no context was accepted are named, each with why; of many some."""
        asked = request(
            (1, CT, ("1.2",)), (3, CT, (EXPLICIT,)), (5, MR, (EXPLICIT,)), (7, ECHO, (IMPLICIT,)),
            (9, "1.2.3.4", (EXPLICIT,)), (11, "1.2\n", (EXPLICIT,)),
        )  # fmt: skip
        retrieves = RoleSelection(ECHO, scu=False, scp=True).item
        for items, policy, expected in (
            ((), POLICY, "MRImageStorage, 1.2.3.4, '1.2\\n' (SOP class not accepted)"),
            ((retrieves,), replace(POLICY, abstract_syntaxes=frozenset((CT, MR, ECHO))),
                "Verification (role not accepted), 1.2.3.4, '1.2\\n' (SOP class not accepted)"),
            ((), replace(POLICY, transfer_syntaxes=frozenset()), "MRImageStorage, 1.2.3.4, '1.2\\n' (SOP class "
                "not accepted), CTImageStorage (no transfer syntax accepted)"),
            ((), replace(POLICY, abstract_syntaxes=frozenset()),
                "CTImageStorage, MRImageStorage, Verification, 1.2.3.4 and 1 more (SOP class not accepted)"),
        ):  # fmt: skip
            asked = replace(asked, user_information=replace(asked.user_information, other=items))
            answer = negotiate(asked, policy)
            assert isinstance(answer, AAssociateAC)
            self.assertEqual(refusals(asked, answer), expected)

    @given(associate_requests, st.data())
    @steady
    def test_every_context_is_answered(self, asked: AAssociateRQ, data: st.DataObject) -> None:
        """Any request gets an answer that can be encoded, with a result for each context under its ID, and
        only what was proposed is chosen.
        """
        contexts = asked.presentation_contexts
        known = [context.abstract_syntax for context in contexts]
        syntaxes = [name for context in contexts for name in context.transfer_syntaxes]
        policy = replace(
            POLICY,
            abstract_syntaxes=data.draw(st.frozensets(st.sampled_from(known))) if known else frozenset(),
            transfer_syntaxes=data.draw(st.frozensets(st.sampled_from(syntaxes)))
            if syntaxes
            else frozenset(),
            prefer=_ranks(*syntaxes[::-2]),
        )
        asked = replace(asked, application_context_name=pdu.APPLICATION_CONTEXT_NAME)
        answer = negotiate(asked, policy)
        self.assertEqual(pdu.decode(answer.encode()), answer)
        if isinstance(answer, AAssociateRJ):
            self.assertFalse((asked.called_ae_title + asked.calling_ae_title).isprintable())
            return
        for context, result in zip(contexts, answer.presentation_contexts, strict=True):
            self.assertEqual(result.id, context.id)
            taken = [name for name in context.transfer_syntaxes if name in policy.transfer_syntaxes]
            if context.abstract_syntax not in policy.abstract_syntaxes:
                self.assertEqual(result.result, 3)
            elif result.result == 1:
                self.assertIn(0x54, [kind for kind, _ in asked.user_information.other])
            elif not taken:
                self.assertEqual(result.result, 4)
            else:
                self.assertEqual(result.result, 0)
                self.assertIn(result.transfer_syntax, taken)
