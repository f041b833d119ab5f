"""``make test-clients``: real clients against a real service; a table of what passed; status 1 if anything failed.

Not part of ``make test``: it installs a dozen packages from their registries into ``.clients``. Run it by hand when the
API changes, and before a release.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from tests.client_matrix.cases import CASES, Case, Saw, Wrong
from tests.client_matrix.environments import CACHE, Client, NotInstalled, read_clients
from tests.client_matrix.service import DEFAULT_SIZE, DOORS, SEVERAL, BusyDoor, Service, busy_door, service
from tests.client_matrix.table import Cell, Column, Verdict, failures, grid, page, summary
from tests.picture_service import KEY, MODEL

CLIENT_SECONDS = 600.0
IDLE_SECONDS = 60.0

KEYS = {
    "one_model_key": ("--models", SEVERAL),
    "one_picture_key": ("--images-per-minute", "1"),
    "spent_key": ("--device-seconds-per-month", "0.001"),
}
"""Keys that every client gets new, by their limits: the last pays for one picture, and not for a second."""

PAGE = Path("docs/results/clients.md")


def main() -> int:
    options = _parser().parse_args()
    cases = [case for case in CASES if not options.cases or case.name in options.cases]
    clients = [client for client in read_clients() if not options.clients or client.name in options.clients]
    CACHE.mkdir(exist_ok=True)
    commands = {client.name: _set_up(client) for client in clients}
    with (
        tempfile.TemporaryDirectory() as folder,
        service(CACHE / "service") as running,
        busy_door(running.url) as door,
    ):
        suite = Suite(running, door, cases, Path(folder))
        columns = [suite.run(client, commands[client.name]) for client in clients]
    print(f"\n{grid(columns)}\n")
    for line in failures(columns):
        print(f"✗ {line}")
    print(summary(columns))
    if len(cases) == len(CASES) and len(clients) == len(read_clients()):
        PAGE.write_text(page(columns))
    return 1 if failures(columns) else 0


def _set_up(client: Client) -> tuple[str, ...] | NotInstalled:
    try:
        return client.command()
    except NotInstalled as error:
        print(f"{client.name} is not installed: {error}", flush=True)
        return error


@dataclass(frozen=True, slots=True)
class Suite:
    service: Service
    door: BusyDoor
    cases: Sequence[Case]
    folder: Path
    """For what drivers read."""

    def run(self, client: Client, command: tuple[str, ...] | NotInstalled) -> Column:
        if isinstance(command, NotInstalled):
            return Column(client, {}, not_installed=str(command))
        self.door.reset()
        began = time.monotonic()
        mark = self.service.log_size()
        lines, complaint = _drive([*command, str(self._setup(client))])
        cancelled = self.service.falls_idle(IDLE_SECONDS) and self.service.has_cancelled(since=mark)
        cells = {}
        for case in self.cases:
            line = lines.get(case.name, {"failed": complaint or "the driver said nothing"})
            cells[case.name] = _judge(case, line, self.door.tries.get(case.name, 0), cancelled=cancelled)
        marks = " ".join(cell.verdict for cell in cells.values())
        print(f"{client.name:18} {marks}  {time.monotonic() - began:5.1f} s", flush=True)
        return Column(client, cells)

    def _setup(self, client: Client) -> Path:
        """What the driver has to know, as a file."""
        setup = {
            "name": client.name,
            "cases": [case.name for case in self.cases],
            "url": f"{self.service.url}/v1",
            "key": KEY,
            "model": MODEL,
            "several": SEVERAL,
            "prompt": "a large red circle in the center on a white background",
            **{name: self.door.url(name) for name in DOORS},
            **{name: self.service.new_key(*limits) for name, limits in KEYS.items()},
            **_draw_inputs(self.folder),
        }
        path = self.folder / "setup.json"
        path.write_text(json.dumps(setup))
        return path


def _draw_inputs(folder: Path) -> dict[str, str]:
    """Pictures to edit, and a mask that opens the middle of them."""
    paths = {name: str(folder / f"{name}.png") for name in ("picture", "other", "mask")}
    for name, colour in (("picture", "red"), ("other", "blue")):
        Image.new("RGB", DEFAULT_SIZE, colour).save(paths[name])
    mask = Image.new("RGBA", DEFAULT_SIZE, "black")
    ImageDraw.Draw(mask).rectangle((32, 32, 96, 96), fill=(0, 0, 0, 0))
    mask.save(paths["mask"])
    return paths


def _drive(command: list[str]) -> tuple[dict[str, dict], str]:
    """The driver's lines by case, and how it ended if not well."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "DISAGFUSION_"))}
    complaint = ""
    try:
        done = subprocess.run(
            command,
            env=clean | {"NO_PROXY": "127.0.0.1", "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
            capture_output=True,
            timeout=CLIENT_SECONDS,
            check=False,
        )
        output, errors = done.stdout, done.stderr.decode(errors="replace")
        if done.returncode != 0:
            complaint = f"the driver ended with status {done.returncode}: {errors[-300:]}"
    except subprocess.TimeoutExpired as error:
        output = error.stdout or b""
        complaint = f"the driver did not end within {CLIENT_SECONDS:g} s"
    lines = [json.loads(line) for line in output.decode().splitlines() if line.startswith('{"case"')]
    return {line["case"]: line for line in lines}, complaint


def _judge(case: Case, line: dict, tries: int, *, cancelled: bool) -> Cell:
    if "cannot" in line:
        return Cell(Verdict.CANNOT, line["cannot"])
    if "failed" in line:
        return Cell(Verdict.FAILED, line["failed"])
    try:
        case.judge(Saw(line["saw"], tries, cancelled))
    except (Wrong, LookupError, TypeError, ValueError) as error:  # the latter where the driver told something else
        return Cell(Verdict.FAILED, f"{error}" if isinstance(error, Wrong) else f"{error!r} in {line['saw']}"[:300])
    return Cell(Verdict.OK)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.client_matrix", description=__doc__)
    parser.add_argument(
        "--client",
        dest="clients",
        action="append",
        choices=[client.name for client in read_clients()],
        help="only this one",
    )
    parser.add_argument(
        "--case", dest="cases", action="append", choices=[case.name for case in CASES], help="only this one"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
