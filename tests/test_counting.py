"""storescp.counting: numbers in words."""

from __future__ import annotations

import json

from twisted.logger import LogLevel, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from storescp.counting import Count
from storescp.log_lines import json_line, text_line


class CountTests(SynchronousTestCase):
    """Count."""

    def test_words(self) -> None:
        """One is one; of none and of many there are more."""
        self.assertEqual([f"{Count(number):file}" for number in (0, 1, 2)], ["0 files", "1 file", "2 files"])
        self.assertEqual(f"{Count(1):report is|reports are} owed", "1 report is owed")
        self.assertEqual(f"{Count(3):report is|reports are} owed", "3 reports are owed")

    def test_log(self) -> None:
        """In a line it is words, for Twisted's own observers, too; in an object it is a number as well."""
        event = {
            "log_level": LogLevel.info,
            "log_namespace": "storescp.x",
            "log_format": "{count:report is|reports are} owed",
            "count": Count(1),
        }
        self.assertTrue(text_line(event, "d", "+0000", "info").endswith(" 1 report is owed\n"))
        self.assertEqual(formatEvent(event), "1 report is owed")
        entry = json.loads(json_line(event, "d", "+0000", "info"))
        self.assertEqual((entry["message"], entry["count"]), ("1 report is owed", 1))
