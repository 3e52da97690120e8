"""The automaton of the DICOM Upper Layer as data: PS3.8 §9.2, Table 9-10, with its states, events and actions by name.

What an action does is the business of :mod:`storescp.upper_layer`.
"""

from __future__ import annotations

import enum


class State(enum.IntEnum):
    """PS3.8 §9.2.1, Table 9-1 to 9-5."""

    IDLE = 1
    AWAITING_ASSOCIATE_RQ = 2
    AWAITING_LOCAL_ASSOCIATE_RESPONSE = 3
    AWAITING_TRANSPORT_CONNECTION = 4
    AWAITING_ASSOCIATE_AC_OR_RJ = 5
    DATA_TRANSFER = 6
    AWAITING_RELEASE_RP = 7
    AWAITING_LOCAL_RELEASE_RESPONSE = 8
    COLLISION_REQUESTOR_AWAITING_LOCAL_RELEASE_RESPONSE = 9
    COLLISION_ACCEPTOR_AWAITING_RELEASE_RP = 10
    COLLISION_REQUESTOR_AWAITING_RELEASE_RP = 11
    COLLISION_ACCEPTOR_AWAITING_LOCAL_RELEASE_RESPONSE = 12
    AWAITING_TRANSPORT_CLOSE = 13


class Input(enum.IntEnum):
    """What can happen to the machine: the events of PS3.8 Table 9-10, under their numbers there."""

    ASSOCIATE_REQUEST = 1
    TRANSPORT_CONFIRMATION = 2
    ASSOCIATE_AC_PDU = 3
    ASSOCIATE_RJ_PDU = 4
    TRANSPORT_INDICATION = 5
    ASSOCIATE_RQ_PDU = 6
    ASSOCIATE_RESPONSE_ACCEPT = 7
    ASSOCIATE_RESPONSE_REJECT = 8
    P_DATA_REQUEST = 9
    P_DATA_PDU = 10
    RELEASE_REQUEST = 11
    RELEASE_RQ_PDU = 12
    RELEASE_RP_PDU = 13
    RELEASE_RESPONSE = 14
    ABORT_REQUEST = 15
    ABORT_PDU = 16
    TRANSPORT_CLOSED = 17
    ARTIM_EXPIRED = 18
    INVALID_PDU = 19


class Action(enum.Enum):
    """The actions of PS3.8 Tables 9-6 to 9-9, under their names there."""

    AE_1 = "AE-1"
    AE_2 = "AE-2"
    AE_3 = "AE-3"
    AE_4 = "AE-4"
    AE_5 = "AE-5"
    AE_6 = "AE-6"
    AE_7 = "AE-7"
    AE_8 = "AE-8"
    DT_1 = "DT-1"
    DT_2 = "DT-2"
    AR_1 = "AR-1"
    AR_2 = "AR-2"
    AR_3 = "AR-3"
    AR_4 = "AR-4"
    AR_5 = "AR-5"
    AR_6 = "AR-6"
    AR_7 = "AR-7"
    AR_8 = "AR-8"
    AR_9 = "AR-9"
    AR_10 = "AR-10"
    AA_1 = "AA-1"
    AA_2 = "AA-2"
    AA_3 = "AA-3"
    AA_4 = "AA-4"
    AA_5 = "AA-5"
    AA_6 = "AA-6"
    AA_7 = "AA-7"
    AA_8 = "AA-8"


def _row(cells: str) -> dict[State, tuple[Action, State]]:
    """``"2:AA-1>13 3:AA-8>13"``: state, action, next state, as the columns of Table 9-10 have them."""
    row = {}
    for cell in cells.split():
        state, _, rest = cell.partition(":")
        action, _, following = rest.partition(">")
        row[State(int(state))] = (Action(action), State(int(following)))
    return row


_OPEN_AA8 = "6:AA-8>13 7:AA-8>13 8:AA-8>13 9:AA-8>13 10:AA-8>13 11:AA-8>13 12:AA-8>13"

#: PS3.8 Table 9-10, an event a row. A cell that the standard leaves blank cannot happen and is absent.
#: AE-6 may end in state 13 and AR-8 in state 10 instead of the ones given.
TABLE: dict[Input, dict[State, tuple[Action, State]]] = {
    Input.ASSOCIATE_REQUEST: _row("1:AE-1>4"),
    Input.TRANSPORT_CONFIRMATION: _row("4:AE-2>5"),
    Input.ASSOCIATE_AC_PDU: _row(f"2:AA-1>13 3:AA-8>13 5:AE-3>6 {_OPEN_AA8} 13:AA-6>13"),
    Input.ASSOCIATE_RJ_PDU: _row(f"2:AA-1>13 3:AA-8>13 5:AE-4>1 {_OPEN_AA8} 13:AA-6>13"),
    Input.TRANSPORT_INDICATION: _row("1:AE-5>2"),
    Input.ASSOCIATE_RQ_PDU: _row(f"2:AE-6>3 3:AA-8>13 5:AA-8>13 {_OPEN_AA8} 13:AA-7>13"),
    Input.ASSOCIATE_RESPONSE_ACCEPT: _row("3:AE-7>6"),
    Input.ASSOCIATE_RESPONSE_REJECT: _row("3:AE-8>13"),
    Input.P_DATA_REQUEST: _row("6:DT-1>6 8:AR-7>8"),
    Input.P_DATA_PDU: _row(
        "2:AA-1>13 3:AA-8>13 5:AA-8>13 6:DT-2>6 7:AR-6>7 8:AA-8>13 9:AA-8>13 10:AA-8>13 11:AA-8>13 12:AA-8>13 "
        "13:AA-6>13"
    ),
    Input.RELEASE_REQUEST: _row("6:AR-1>7"),
    Input.RELEASE_RQ_PDU: _row(
        "2:AA-1>13 3:AA-8>13 5:AA-8>13 6:AR-2>8 7:AR-8>9 8:AA-8>13 9:AA-8>13 10:AA-8>13 11:AA-8>13 12:AA-8>13 "
        "13:AA-6>13"
    ),
    Input.RELEASE_RP_PDU: _row(
        "2:AA-1>13 3:AA-8>13 5:AA-8>13 6:AA-8>13 7:AR-3>1 8:AA-8>13 9:AA-8>13 10:AR-10>12 11:AR-3>1 12:AA-8>13 "
        "13:AA-6>13"
    ),
    Input.RELEASE_RESPONSE: _row("8:AR-4>13 9:AR-9>11 12:AR-4>13"),
    Input.ABORT_REQUEST: _row(
        "3:AA-1>13 4:AA-2>1 5:AA-1>13 6:AA-1>13 7:AA-1>13 8:AA-1>13 9:AA-1>13 10:AA-1>13 11:AA-1>13 12:AA-1>13"
    ),
    Input.ABORT_PDU: _row(
        "2:AA-2>1 3:AA-3>1 5:AA-3>1 6:AA-3>1 7:AA-3>1 8:AA-3>1 9:AA-3>1 10:AA-3>1 11:AA-3>1 12:AA-3>1 13:AA-2>1"
    ),
    Input.TRANSPORT_CLOSED: _row(
        "2:AA-5>1 3:AA-4>1 4:AA-4>1 5:AA-4>1 6:AA-4>1 7:AA-4>1 8:AA-4>1 9:AA-4>1 10:AA-4>1 11:AA-4>1 12:AA-4>1 "
        "13:AR-5>1"
    ),
    Input.ARTIM_EXPIRED: _row("2:AA-2>1 13:AA-2>1"),
    Input.INVALID_PDU: _row(f"2:AA-1>13 3:AA-8>13 5:AA-8>13 {_OPEN_AA8} 13:AA-7>13"),
}
