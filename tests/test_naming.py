"""storescp.naming: which UIDs may become path names, and which paths they become."""

from __future__ import annotations

import datetime
import posixpath

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from storescp.naming import Naming, UnsafeUID, is_safe_uid, relative_path
from tests.strategies import steady

RECEIVED = datetime.date(2031, 2, 3)

UNSAFE = [
    "",
    ".",
    "..",
    "../1.2.3",
    "1.2/3",
    "1.2\\3",
    "/1.2",
    "1.2\0",
    "\0",
    "1.2\n",
    "1.2 ",
    " 1.2",
    "1.2\x7f",
    ".1.2",
    "-1.2",
    "_1.2",
    "1.é",
    "1.٣",  # a digit, but not an ASCII one
    "1.2:3",
    "1.2*",
    "1" * 65,
]
SAFE = ["1", "1.2.840.10008", "1.02.003", "1.2.a", "ABC", "1-2_3", "1..2", "1.2.", "2.25." + "9" * 59]


def path(
    naming: Naming,
    study: str = "1.1",
    series: str = "1.2",
    sop: str = "1.3",
    study_date: str | None = None,
) -> str:
    """relative_path(), received on RECEIVED."""
    return relative_path(
        naming,
        study_instance_uid=study,
        series_instance_uid=series,
        sop_instance_uid=sop,
        study_date=study_date,
        received=RECEIVED,
    )


class IsSafeUIDTests(SynchronousTestCase):
    """is_safe_uid()."""

    def test_harmless_breaches_are_taken(self) -> None:
        """Proper UIDs and those that break PS3.5 §9.1 in harmless ways are safe, up to 64 characters."""
        self.assertEqual([text for text in SAFE if not is_safe_uid(text)], [])
        self.assertTrue(is_safe_uid("1" * 64))

    def test_dangerous_names_are_refused(self) -> None:
        """Separators, control and non-ASCII characters, hidden names, "" and 65 characters are unsafe."""
        self.assertEqual([text for text in UNSAFE if is_safe_uid(text)], [])

    @steady
    @given(st.text(st.sampled_from("019.azAZ-_/\\\0 \n~é"), max_size=70) | st.text())
    def test_safe_means_one_component(self, text: str) -> None:
        """Whatever is called safe is one visible component of a path, of 1 to 64 printable ASCII characters."""
        if is_safe_uid(text):
            self.assertEqual(posixpath.normpath(posixpath.join("/root", text)), "/root/" + text)
            self.assertEqual(posixpath.basename(text), text)
            self.assertFalse(text.startswith("."))
            self.assertTrue(text.isascii() and text.isprintable() and 1 <= len(text) <= 64)


class RelativePathTests(SynchronousTestCase):
    """relative_path()."""

    def test_hierarchical(self) -> None:
        """`hierarchical` is Study/Series/SOP.dcm."""
        self.assertEqual(path(Naming.HIERARCHICAL, study_date="20240229"), "1.1/1.2/1.3.dcm")

    def test_flat(self) -> None:
        """`flat` is SOP.dcm."""
        self.assertEqual(path(Naming.FLAT, study_date="20240229"), "1.3.dcm")

    def test_date(self) -> None:
        """`date` is YYYY/MM/DD/Study/SOP.dcm by the Study Date, in today's form of DA and in the old one."""
        for study_date in ("20240229", "2024.02.29"):
            self.assertEqual(path(Naming.DATE, study_date=study_date), "2024/02/29/1.1/1.3.dcm")
        self.assertEqual(path(Naming.DATE, study_date="09990101"), "0999/01/01/1.1/1.3.dcm")

    def test_date_of_receipt(self) -> None:
        """A Study Date that is missing, no real day or a mixture of forms gives way to the day of receipt."""
        dates = [
            "",
            "2024",
            "20230229",
            "20241301",
            "00000101",
            "2024-02-29",
            "2024.0229",
            "202402.29",
            "../../..",
            "2024022٩",
        ]
        for study_date in (None, *dates):
            self.assertEqual(path(Naming.DATE, study_date=study_date), "2031/02/03/1.1/1.3.dcm", study_date)

    def test_days_of_receipt_are_kept_apart(self) -> None:
        """The same study received on another day goes under that day: the first call is not remembered."""
        path(Naming.DATE)
        another = relative_path(
            Naming.DATE,
            study_instance_uid="1.1",
            series_instance_uid="1.2",
            sop_instance_uid="1.3",
            study_date=None,
            received=datetime.date(2031, 2, 4),
        )
        self.assertEqual(another, "2031/02/04/1.1/1.3.dcm")

    def test_any_unsafe_uid_is_refused(self) -> None:
        """Each scheme refuses each unsafe UID at each of three levels, in one line that names the level."""
        for naming in Naming:
            for uid in UNSAFE:
                for level in ("study", "series", "sop"):
                    uids = {"study": "1.1", "series": "1.2", "sop": "1.3"} | {level: uid}
                    message = str(self.assertRaises(UnsafeUID, path, naming, **uids))
                    self.assertTrue(message.lower().startswith(f"{level} instance uid "), message)
                    self.assertEqual(len(message.splitlines()), 1)

    @steady
    @given(
        st.sampled_from(Naming),
        st.lists(st.text(max_size=70) | st.sampled_from(SAFE + UNSAFE), min_size=4, max_size=4),
    )
    def test_path_stays_below_the_root(self, naming: Naming, texts: list[str]) -> None:
        """Whatever the four texts are, the outcome is UnsafeUID or a normal relative path ending in .dcm."""
        study, series, sop, study_date = texts
        try:
            result = path(naming, study, series, sop, study_date)
        except UnsafeUID:
            self.assertFalse(is_safe_uid(study) and is_safe_uid(series) and is_safe_uid(sop))
        else:
            self.assertEqual(posixpath.normpath(result), result)
            self.assertNotIn("..", result.split("/"))
            self.assertFalse(result.startswith("/"))
            self.assertTrue(result.endswith(".dcm"))
