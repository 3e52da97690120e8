"""``python -m storescp``: the operator's command."""

import sys

from storescp.operator import main

if __name__ == "__main__":
    sys.exit(main())
