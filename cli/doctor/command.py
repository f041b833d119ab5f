"""Looks at what this machine and the gateway need, and says of each fault what to do."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence

from cli.doctor import machine, service
from cli.doctor.finding import Finding, Verdict


def main(arguments: Sequence[str], program: str = "disagfusion") -> int:
    """The exit status: 0, or 2 where there is a fault."""
    given = _parser(program).parse_args(arguments)
    faults = 0
    for finding in findings(given):
        faults += finding.verdict is Verdict.FAULT
        cure = f"\n       → {finding.cure}" if finding.cure else ""
        sys.stdout.write(f"{finding.verdict:5}  {finding.what}{cure}\n")
        sys.stdout.flush()
    sys.stdout.write(f"\n{'no fault' if not faults else 'one fault' if faults == 1 else f'{faults} faults'} found\n")
    return 2 if faults else 0


def findings(given: argparse.Namespace) -> Iterator[Finding]:
    yield from machine.packages()
    yield from machine.gpu()
    yield from machine.models(given.model)
    settings, said = service.settings_of(given.config)
    yield from said
    if settings is not None:
        yield from service.keys(settings)
        yield from service.disk(settings)
    if given.url is not None:
        yield from service.gateway(given.url, os.environ.get("OPENAI_API_KEY", ""))
    elif settings is not None:  # whoever asks for a gateway that runs has its ports taken
        yield from service.ports(settings)


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"{program} doctor", description=__doc__)
    parser.add_argument(
        "--url",
        default=os.environ.get("OPENAI_BASE_URL"),
        help="of a gateway that runs (default: OPENAI_BASE_URL); without one: could one start here?",
    )
    parser.add_argument("--model", action="append", default=[], help="folder or hub id that must be there; repeatable")
    parser.add_argument("--config", metavar="FILE", help="TOML file with the gateway's settings (DISAGFUSION_CONFIG)")
    return parser
