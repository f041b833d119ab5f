"""``python -m scheduler``: predictions, simulations and plans, without any server."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

from scheduler.cost import predict_cli
from scheduler.sim import cli, plan_cli

COMMANDS: dict[str, tuple[Callable[[list[str]], int], str]] = {
    "predict": (predict_cli.main, "what a request would cost, and how the figure came about"),
    "simulate": (cli.simulate_main, "a scenario in virtual time"),
    "plan": (plan_cli.main, "which GPUs, how many and with which roles, for a load at an SLO"),
}


def main(argv: list[str]) -> int:
    if argv and argv[0] in COMMANDS:
        return COMMANDS[argv[0]][0](argv[1:])
    wants_help = bool(argv) and argv[0] in ("-h", "--help")
    lines = ["usage: python -m scheduler COMMAND …; COMMAND --help says more", ""]
    lines += [f"  {name:10} {what}" for name, (_, what) in COMMANDS.items()]
    (sys.stdout if wants_help else sys.stderr).write("\n".join(lines) + "\n")
    return 0 if wants_help else 2


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `… | head` ends us without a word, as it does other programs
    sys.exit(main(sys.argv[1:]))
