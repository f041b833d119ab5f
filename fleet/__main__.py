"""``python -m fleet``. See ``--help``."""

from __future__ import annotations

import sys

from fleet.command import main

if __name__ == "__main__":
    sys.exit(main())
