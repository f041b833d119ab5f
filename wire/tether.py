"""``python -m wire.tether PARENT_PID PROGRAM …``: becomes PROGRAM, which ends when its parent does.

On Linux the kernel sees to it, even after ``kill -9`` of the parent; elsewhere only a regular end is cared for.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, *command = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # Asked after prctl: a parent that ended before it would send no signal.
    if os.getppid() != int(parent):
        sys.exit("wire.tether: the parent has ended already")
    os.execv(command[0], command)  # noqa: S606 # the point is to start a program without a shell


if __name__ == "__main__":
    main()
