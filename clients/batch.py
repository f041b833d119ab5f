"""Has a file of requests run when the servers have nothing else to do, and collects what came of them."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clients.events import Malformed, picture
from clients.progress import BAR
from clients.service import Service, add_service_options, run
from clients.terminal import StatusLine

OVER = ("completed", "failed", "cancelled", "expired")
ENDPOINTS = {"generations": "/v1/images/generations", "edits": "/v1/images/edits"}
ERRORS_SHOWN = 10


def main(argv: list[str], program: str = "python -m clients") -> int:
    parser = argparse.ArgumentParser(prog=f"{program} batch", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    running = commands.add_parser("run", help="upload a file of JSON lines, wait for the end, write the pictures")
    running.add_argument("file", type=Path)
    running.add_argument("--edits", action="store_const", const="edits", default="generations", dest="kind")
    running.add_argument("--no-wait", action="store_true", help="print the batch's id, and end")
    waiting = commands.add_parser("wait", help="until a batch ends; writes the pictures")
    cancelling = commands.add_parser("cancel", help="give up what has not been run")
    listing = commands.add_parser("list", help="your batches, newest first; needs an API key")
    does: dict[argparse.ArgumentParser, Callable[[argparse.Namespace, Service, StatusLine], int]]
    does = {running: _run, waiting: _wait, cancelling: _cancel, listing: _list}
    for command, action in does.items():
        command.set_defaults(does=action)
        add_service_options(command)
    for command in (waiting, cancelling):
        command.add_argument("id")
    for command in (running, waiting):
        command.add_argument(
            "-o", "--output", type=Path, default=Path(), help="folder for the pictures (default: here)"
        )
    args = parser.parse_args(argv)
    return run(args, args.does)


def _run(args: argparse.Namespace, service: Service, line: StatusLine) -> int:
    with args.file.open("rb") as lines:
        upload = service.call("POST", "/files", data={"purpose": "batch"}, files={"file": (args.file.name, lines)})
    body = {"input_file_id": upload["id"], "endpoint": ENDPOINTS[args.kind], "completion_window": "24h"}
    args.id = service.call("POST", "/batches", json=body)["id"]
    if args.no_wait:
        print(args.id)
        return 0
    return _wait(args, service, line)


def _wait(args: argparse.Namespace, service: Service, line: StatusLine) -> int:
    args.output.mkdir(parents=True, exist_ok=True)
    batch: dict[str, Any] = {}
    for batch in service.watch(f"/batches/{args.id}", lambda batch: batch["status"] in OVER):
        line.show(told(batch))
    line.clear()
    if batch["errors"]:
        first = batch["errors"]["data"][0]
        where = f"line {first['line']}: " if first.get("line") else ""
        raise Malformed(f"word that the file cannot be run: {where}{first['message']}")
    if batch["output_file_id"]:
        for answered in service.lines(f"/files/{batch['output_file_id']}/content"):
            for path in _write(args.output, answered):
                print(path)
    if batch["error_file_id"]:
        _complain(service, batch)
    return 0 if batch["status"] == "completed" and not batch["error_file_id"] else 1


def _cancel(args: argparse.Namespace, service: Service, _: StatusLine) -> int:
    print(service.call("POST", f"/batches/{args.id}/cancel")["status"])
    return 0


def _list(_: argparse.Namespace, service: Service, __: StatusLine) -> int:
    for batch in service.pages("/batches"):
        made = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(batch["created_at"]))
        print(f"{batch['id']}  {made}  {told(batch)}")
    return 0


def told(batch: dict[str, Any]) -> str:
    """How far a batch is, in one line."""
    counts = batch["request_counts"]
    ended = counts["completed"] + counts["failed"]
    parts = [batch["status"].replace("_", " ")]
    if counts["total"]:
        filled = BAR * ended // counts["total"]
        parts.append(f"[{'#' * filled}{'-' * (BAR - filled)}] {ended}/{counts['total']}")
    if counts["failed"]:
        parts.append(f"{counts['failed']} failed")
    return "  ".join(parts)


def _write(folder: Path, answered: dict[str, Any]) -> list[Path]:
    """Pictures are named after their requests, as far as a file can be."""
    body = answered["response"]["body"]
    name = re.sub(r"[^\w.-]", "_", answered["custom_id"])[:100].lstrip(".") or answered["id"]
    items = body["data"]
    paths = []
    for index, item in enumerate(items):
        number = f"-{index}" if len(items) > 1 else ""
        path = folder / f"{name}{number}.{body.get('output_format', 'png')}"
        if path.exists():  # two ids may become one name
            path = path.with_stem(f"{path.stem}-{answered['id'][-8:]}")
        path.write_bytes(picture(item))
        paths.append(path)
    return paths


def _complain(service: Service, batch: dict[str, Any]) -> None:
    for number, failed in enumerate(service.lines(f"/files/{batch['error_file_id']}/content")):
        if number == ERRORS_SHOWN:
            print(f"… and more in {batch['error_file_id']}", file=sys.stderr)
            return
        error = failed["error"] or failed["response"]["body"]["error"]
        print(f"{failed['custom_id']}: {error['message']}", file=sys.stderr)
