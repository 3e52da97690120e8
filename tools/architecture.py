"""Writes the picture of the layers into docs/architecture.rst, from the table that tests/test_layers.py holds.

``make reference`` runs it.
"""

from __future__ import annotations

import pathlib
import textwrap

from tests.test_layers import LAYERS

FILE = pathlib.Path(__file__).parent.parent / "docs" / "architecture.rst"
BEGIN, END = ".. layers\n", ".. end of layers\n"
WIDTH = 112


def picture() -> str:
    """A box for each layer, the highest first."""
    line = "+" + "-" * (WIDTH + 2) + "+"
    rows = [line]
    for layer in reversed(LAYERS):
        rows += (f"| {text:<{WIDTH}} |" for text in textwrap.wrap("  ".join(layer), WIDTH))
        rows.append(line)
    return "::\n\n" + "".join(f"    {row}\n" for row in rows)


def text() -> str:
    """The whole document, with the picture as it is now."""
    before, _, rest = FILE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{picture()}\n{END}{after}"


if __name__ == "__main__":
    FILE.write_text(text())
