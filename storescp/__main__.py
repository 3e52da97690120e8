"""The operator's command, ``storescp`` or ``python -m storescp``."""

import sys

from storescp import interrupts  # first, for the rest takes its time

# isort: split
from storescp.operator import main as operator_main


def main() -> int:
    """Be the command; its exit status."""
    interrupts.raise_again()
    return operator_main()


if __name__ == "__main__":
    sys.exit(main())
