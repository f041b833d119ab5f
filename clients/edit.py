"""Makes pictures from pictures and a text."""

from __future__ import annotations

from pathlib import Path

from clients import options
from clients.api import Call, Upload
from clients.making import make, watched


def main(argv: list[str], program: str = "python -m clients") -> int:
    parser = options.parser(f"{program} edit", __doc__)
    parser.add_argument("-i", "--image", type=Path, action="append", required=True, help="may be repeated")
    parser.add_argument(
        "--mask", type=Path, help="a PNG of the first picture's size: what is transparent is drawn anew"
    )
    args = options.parse(parser, argv)
    try:
        images = tuple(map(Upload.read, args.image))
        mask = Upload.read(args.mask) if args.mask else None
    except OSError as error:
        parser.error(f"{error.filename} cannot be read: {error.strerror}")
    return make(args, Call(options.fields(args, watched=watched()), images, mask))
