"""Coverage-guided fuzzing of everything that decodes a peer's bytes: ``make fuzz``, and the seeds as tests."""

from __future__ import annotations

import pathlib

HERE = pathlib.Path(__file__).parent

#: The targets; see :mod:`fuzz.targets`, which is not to be imported before the fuzzer has been.
NAMES = ("pdus", "user_information", "command", "head", "stored", "commitment", "conversation")
