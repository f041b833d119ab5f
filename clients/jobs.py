"""Has pictures made by jobs, which go on without this program: post one, see how far it is, get its pictures."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from clients import options
from clients.events import Malformed, picture
from clients.progress import BAR
from clients.service import Service, add_service_options, run
from clients.terminal import StatusLine

OVER = ("completed", "failed", "cancelled", "expired")


def main(argv: list[str], program: str = "python -m clients") -> int:
    if argv[:1] == ["post"]:
        return _post(argv[1:], program)
    parser = argparse.ArgumentParser(prog=f"{program} jobs", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    commands.add_parser("post", help="PROMPT and the options of generate: prints the new job's id")
    listing = commands.add_parser("list", help="your jobs, newest first; needs an API key")
    waiting = commands.add_parser("wait", help="until a job ends; writes its pictures")
    waiting.add_argument("-o", "--output", type=Path, help="default: ID.png, or as the pictures' format is")
    deleting = commands.add_parser("delete", help="cancel a job that has not ended; delete one that has")
    for command, does in ((listing, _list), (waiting, _wait), (deleting, _delete)):
        command.set_defaults(does=does)
        add_service_options(command)
    for command in (waiting, deleting):
        command.add_argument("id")
    args = parser.parse_args(argv)
    return run(args, args.does)


def _post(argv: list[str], program: str) -> int:
    parser = options.parser(f"{program} jobs post", "Posts a job and prints its id.")
    parser.add_argument("--wait", action="store_true", help="and wait for its pictures")
    parser.add_argument("--webhook", metavar="URL", help="is told when the job ends")
    args = options.parse(parser, argv)
    args.no_stream = True
    return run(args, _posted)


def _posted(args: argparse.Namespace, service: Service, line: StatusLine) -> int:
    body = options.fields(args, watched=False) | {"async": True}
    if args.webhook is not None:
        body["webhook_url"] = args.webhook
    args.id = service.call("POST", "/images/generations", json=body)["id"]
    if args.wait:
        return _wait(args, service, line)
    print(args.id)
    return 0


def _list(_: argparse.Namespace, service: Service, __: StatusLine) -> int:
    for job in service.pages("/images/jobs"):
        made = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job["created_at"]))
        print(f"{job['id']}  {made}  {job['status']:<11}  {job['model']}")
    return 0


def _wait(args: argparse.Namespace, service: Service, line: StatusLine) -> int:
    job: dict[str, Any] = {}
    for job in service.watch(f"/images/jobs/{args.id}", lambda job: job["status"] in OVER):
        line.show(told(job, time.time()))
    line.clear()
    if job["status"] != "completed":
        error = job.get("error") or {}
        raise Malformed(f"word that the job {job['status']}: {error.get('message', 'no reason was given')}")
    for path in _write(args, service, job):
        print(path)
    return 0


def _delete(args: argparse.Namespace, service: Service, _: StatusLine) -> int:
    job = service.call("DELETE", f"/images/jobs/{args.id}")
    print("deleted" if job.get("deleted") else job["status"])
    return 0


def told(job: dict[str, Any], now: float) -> str:
    """How far a job is, in one line."""
    parts = [job["status"].replace("_", " ")]
    if progress := job.get("progress"):
        filled = BAR * progress["step"] // progress["steps"]
        parts = [f"[{'#' * filled}{'-' * (BAR - filled)}] step {progress['step']}/{progress['steps']}"]
    elif job.get("queue_position"):
        parts.append(f"place {job['queue_position']}")
    if (done := job.get("predicted_completion_at")) is not None:
        parts.append(f"done in about {max(0.0, done - now):.0f} s")
    return "  ".join(parts)


def _write(args: argparse.Namespace, service: Service, job: dict[str, Any]) -> list[Path]:
    answer = job["response"]
    output = args.output or Path(f"{job['id']}.{answer.get('output_format', 'png')}")
    items = answer["data"]
    paths = [output if len(items) == 1 else output.with_stem(f"{output.stem}-{index}") for index in range(len(items))]
    for path, item in zip(paths, items, strict=True):
        path.write_bytes(service.fetch(item["url"]) if item.get("url") else picture(item))
    return paths
