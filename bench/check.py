"""A figure that has a limit to keep."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Check:
    """What was measured, and what was to be reached: ``least`` or more, or less than ``below``, in ``unit``.

    ``value`` is None when it could not be had; ``detail`` then says why.
    """

    name: str
    title: str
    value: float | None
    least: float | None = None
    below: float | None = None
    unit: str = ""
    detail: str = ""

    @property
    def reached(self) -> bool:
        if self.value is None:
            return False
        return (self.least is None or self.value >= self.least) and (
            self.below is None or self.value < self.below
        )

    def cells(self) -> tuple[str, str, str, str, str]:
        """The cells of a line in the list of what was to be reached."""
        value = "-" if self.value is None else f"{self.value:.2f}"
        limit = f"below {self.below:g}" if self.below is not None else f"at least {self.least:g}"
        verdict = "reached" if self.reached else "MISSED"
        return self.title, verdict, value, f"{limit} {self.unit}".strip(), self.detail

    def as_json(self) -> dict[str, object]:
        return dataclasses.asdict(self) | {"reached": self.reached}
