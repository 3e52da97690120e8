"""Hypothesis strategies for what travels over an association, and ways to cut a byte stream."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from storescp import pdu

#: Property tests repeat themselves exactly, and a busy machine does not fail them.
steady = settings(
    deadline=None, derandomize=True, max_examples=150, suppress_health_check=[HealthCheck.too_slow]
)

bytes_8 = st.integers(0, 255)
uids = st.lists(st.integers(0, 10**9), min_size=1, max_size=6).map(lambda parts: ".".join(map(str, parts)))
names = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=16)
ae_titles = st.text(st.characters(min_codepoint=1, max_codepoint=0xFF), max_size=16).map(
    lambda title: title.strip("\0 ")
)
context_ids = st.integers(0, 127).map(lambda number: 2 * number + 1)

presentation_contexts = st.builds(
    pdu.PresentationContext, context_ids, uids, st.lists(uids, max_size=4).map(tuple)
)
context_results = st.builds(pdu.PresentationContextResult, context_ids, bytes_8, uids)
short_bytes = st.binary(max_size=20)
user_identities = st.builds(pdu.UserIdentity, bytes_8, short_bytes, short_bytes, st.booleans())
user_information = st.builds(
    pdu.UserInformation,
    st.integers(0, 2**32 - 1),
    uids,
    names,
    st.lists(st.tuples(st.sampled_from((0x53, 0x54, 0x56, 0x57, 0xEE)), short_bytes), max_size=3).map(tuple),
    st.none() | user_identities,
    st.none() | short_bytes,
)
associate_requests = st.builds(
    pdu.AAssociateRQ,
    ae_titles,
    ae_titles,
    st.lists(presentation_contexts, max_size=5, unique_by=lambda context: context.id).map(tuple),
    user_information,
    uids,
    st.integers(0, 65535),
)
associate_responses = st.builds(
    pdu.AAssociateAC,
    ae_titles,
    ae_titles,
    st.lists(context_results, max_size=5, unique_by=lambda context: context.id).map(tuple),
    user_information,
    uids,
    st.integers(0, 65535),
)
pdus: st.SearchStrategy[pdu.PDU] = st.one_of(
    associate_requests,
    associate_responses,
    st.builds(pdu.AAssociateRJ, bytes_8, bytes_8, bytes_8),
    st.just(pdu.AReleaseRQ()),
    st.just(pdu.AReleaseRP()),
    st.builds(pdu.AAbort, bytes_8, bytes_8),
)


class PDV(NamedTuple):
    """A presentation data value as it stands in a P-DATA-TF, PS3.8 §9.3.5.1."""

    presentation_context_id: int
    is_command: bool
    is_last: bool
    data: bytes

    def encode(self) -> bytes:
        control = self.is_command | self.is_last << 1
        return struct.pack(">IBB", len(self.data) + 2, self.presentation_context_id, control) + self.data


def p_data(pdvs: Iterable[PDV]) -> bytes:
    """A P-DATA-TF of *pdvs*, encoded independently of the package."""
    body = b"".join(pdv.encode() for pdv in pdvs)
    return struct.pack(">BxI", 4, len(body)) + body


pdvs = st.builds(PDV, bytes_8, st.booleans(), st.booleans(), st.binary(max_size=30))
p_datas = st.lists(pdvs, min_size=1, max_size=4)

#: How long the pieces are in which a stream arrives, again and again.
piece_sizes = st.lists(st.integers(1, 50), min_size=1, max_size=6)


def pieces(data: bytes, sizes: Iterable[int]) -> Iterator[bytes]:
    """*data* cut into pieces of *sizes*, which are repeated as long as there is data."""
    position = 0
    for size in itertools.cycle(sizes):
        if position >= len(data):
            return
        yield data[position : position + size]
        position += size
