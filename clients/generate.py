"""Makes pictures from the command line and says what each stage took."""

from __future__ import annotations

import argparse
import base64
import os
import sys
from pathlib import Path

import httpx

from clients.address import DEFAULT, ENVIRONMENT, base_url
from clients.timing import stage_seconds

FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
NUMBERS = {"seed": int, "num_inference_steps": int, "guidance_scale": float, "n": int}


def main(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    body = {name: getattr(args, name) for name in ("prompt", "model", "size", "negative_prompt", *NUMBERS)}
    body["output_format"] = FORMATS[args.output.suffix.lower()]
    key = os.environ.get("OPENAI_API_KEY", "")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        answer = httpx.post(f"{args.url}/images/generations", json=body, headers=headers, timeout=args.timeout)
    except httpx.HTTPError as error:
        print(f"{args.url} cannot be reached: {error}", file=sys.stderr)
        return 1
    if answer.is_error:
        print(f"{answer.status_code}: {_complaint(answer)}", file=sys.stderr)
        return 1
    try:
        for path in _save(answer.json()["data"], args.output):
            print(path)
    except OSError as error:
        print(f"{error.filename} cannot be written: {error.strerror}", file=sys.stderr)
        return 1
    for stage, seconds in stage_seconds(answer.headers.get("server-timing", "")):
        print(f"  {stage:<24} {seconds:8.3f} s")
    return 0


def _save(items: list[dict[str, str]], output: Path) -> list[Path]:
    paths = []
    for index, item in enumerate(items):
        path = output if len(items) == 1 else output.with_stem(f"{output.stem}-{index}")
        path.write_bytes(base64.b64decode(item["b64_json"]))
        paths.append(path)
    return paths


def _picture(given: str) -> Path:
    path = Path(given)
    if path.suffix.lower() not in FORMATS:
        raise argparse.ArgumentTypeError(f"{given!r} ends in none of {', '.join(FORMATS)}")
    return path


def _complaint(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return answer.text[:300]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m clients generate", description=__doc__, epilog=ENVIRONMENT)
    parser.add_argument("prompt")
    parser.add_argument("-o", "--output", type=_picture, default="picture.png", help="its ending sets the format")
    parser.add_argument("--url", type=base_url, default=DEFAULT, help="of the API (default: %(default)s)")
    parser.add_argument("--model")
    parser.add_argument("--size", help="WIDTHxHEIGHT in pixels")
    parser.add_argument("--negative-prompt")
    for name, kind in NUMBERS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind)
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds")
    return parser
