"""The code blocks of each document, run one after the other as a reader would, unless they are marked (``blocks.py``).

``http://127.0.0.1:8000`` is a gateway with the bundled model, or the one that the page itself starts.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from PIL import Image

from tests.databases import prepared
from tests.docs.blocks import BLOCKS, ROOT, Block
from tests.servers import free_port
from website.reference.commands import help_of

pytestmark = pytest.mark.services

PATIENCE = 600.0
ADMIN_KEY = "an-operators-long-key"
ADDRESS = re.compile(r"(127\.0\.0\.1|10\.0\.0\.\d+):(\d{4})|(--port) (\d{4})")
MADE = re.compile(r"(?:-o|--plot|>) (\S+)\.png$", re.MULTILINE)
"""What a command writes, at the end of a line."""
SAYS = {
    "docs/api.md": ["image_generation.completed", 'in.jsonl\'] {"line": 1}', "circle 2 200"],
    "docs/commands.md": ["local-encoder", "local-dit"],
    "docs/index.md": ["characters of base64"],
    "docs/how-to/sizing.md": ["answer: 4 × NVIDIA H100, price 12"],
    "docs/how-to/keys-and-limits.md": ["key_", '"limits"', "alice", "shop"],
}
"""Page → what its blocks print, beside that none fails."""
SIZES = {"docs/api.md": {"later.png": (256, 256), "edited.png": (128, 96)}}
OURS = re.compile(
    r"(?:(?<![\w/.-])(?<!--entrypoint )disagfusion|python -m (?:clients|scheduler|cli)"
    r"|(python -m gateway)|(python -m stage_server)) "
    r"([^|&;#)]*)"
)
PAGES = sorted({block.page for block in BLOCKS if block.is_run})


@dataclass
class Reader:
    """Runs what a page shows, in ``folder``."""

    folder: Path
    ports: dict[str, int] = field(default_factory=dict)
    """As the page names them → those that are free here."""
    servers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    written: str = ""
    """All that commands printed."""

    def run(self, block: Block) -> None:
        program = ("bash", "-euo", "pipefail", "-c") if block.language == "sh" else (sys.executable, "-c")
        done = subprocess.run(
            [*program, self.here(block.text)],
            cwd=self.folder,
            env=self.environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, f"{block}: {done.stderr}\n{self.logs()}"
        assert not re.search(r'"error":\s*\{', done.stdout), f"{block}: {done.stdout}"
        self.written += done.stdout
        for name in MADE.findall(block.text):
            made = [self.folder / f"{name}.png", self.folder / f"{name}-0.png"]
            assert any(path.exists() and path.read_bytes()[:4] == b"\x89PNG" for path in made), f"{block}: {name}"

    def serve(self, block: Block) -> None:
        for command in block.commands():
            with (self.folder / f"server-{len(self.servers)}.log").open("wb") as log:
                self.servers.append(
                    subprocess.Popen(
                        ["bash", "-euo", "pipefail", "-c", self.here(command)],
                        cwd=self.folder,
                        env=self.environment(),
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )

    def here(self, text: str) -> str:
        """``text`` with addresses of this machine that are free, and this Python."""
        text = text.replace(".venv/bin/", "")
        return re.sub(r"10\.0\.0\.\d+", "127.0.0.1", ADDRESS.sub(self._address, text))

    def _address(self, found: re.Match[str]) -> str:
        if found[3]:
            return f"{found[3]} {self.port(f'127.0.0.1:{found[4]}')}"
        return f"127.0.0.1:{self.port(f'{found[1]}:{found[2]}')}"

    def port(self, address: str) -> int:
        # The gateway's HTTP port is one, whatever the page calls the gateway's machine.
        name = address.partition(":")[2] if address.endswith(":8000") else address
        return self.ports.setdefault(name, free_port())

    def environment(self) -> dict[str, str]:
        """Of a reader who has activated ``.venv`` and set nothing else, but for an address and an admin key."""
        prefixes = ("DISAGFUSION_", "OTEL_", "OPENAI_")
        clean = {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}
        return clean | {
            "PATH": f"{Path(sys.executable).parent}:{clean['PATH']}",
            "PYTHONPATH": str(ROOT),
            "HF_HUB_OFFLINE": "1",
            "DISAGFUSION_STATE_DIR": str(prepared(self.folder / "state")),
            "DISAGFUSION_ADMIN_KEY": ADMIN_KEY,
            "OPENAI_BASE_URL": self.here("http://127.0.0.1:8000/v1"),
        }

    def logs(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("server-*.log")))

    def stop(self) -> None:
        for server in self.servers:
            os.killpg(server.pid, signal.SIGTERM)
        for server in self.servers:
            server.wait(PATIENCE)


@contextmanager
def reading(folder: Path) -> Iterator[Reader]:
    """In a folder with the files that examples use."""
    for name, size in {"photo.jpg": (128, 96), "photo.png": (256, 256), "circle.png": (256, 256)}.items():
        Image.new("RGB", size, "white").save(folder / name)
    Image.new("RGBA", (256, 256)).save(folder / "mask.png")
    (folder / "in.jsonl").write_text('{"line": 1}\n')
    (folder / "requests.jsonl").write_text(
        '{"custom_id": "one", "method": "POST", "url": "/v1/images/generations", "body": {"prompt": "a red ring"}}\n'
    )
    for name in ("scheduler", "stage_server"):  # files that are named from the root of a clone
        (folder / name).symlink_to(ROOT / name)
    reader = Reader(folder)
    try:
        yield reader
    finally:
        reader.stop()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a gateway with the bundled model, for pages that start none."""
    serve = Block("here", 0, "sh", "disagfusion serve --port 8000", "serves")
    ready = "curl -fsS --retry 120 --retry-all-errors --retry-delay 1 http://127.0.0.1:8000/readyz"
    with reading(tmp_path_factory.mktemp("service")) as reader:
        reader.serve(serve)
        reader.run(Block("here", 0, "sh", ready, ""))
        yield reader.port("127.0.0.1:8000")


@pytest.mark.parametrize("page", PAGES)
def test_the_blocks_of_a_page_work_one_after_the_other(
    page: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    blocks = [block for block in BLOCKS if block.page == page]
    text = "".join(block.text for block in blocks if block.is_run)
    if missing := [program for program in ("curl", "jq", "openssl") if program in text and not shutil.which(program)]:
        pytest.skip(f"{', '.join(missing)} is not installed")
    with reading(tmp_path) as reader:
        if not any(block.mark == "serves" for block in blocks):
            reader.ports["8000"] = request.getfixturevalue("service")
        for block in blocks:
            if block.file:
                (tmp_path / block.file).write_text(reader.here(block.text))
        for block in in_order(blocks):
            if block.mark == "serves":
                reader.serve(block)
            else:
                reader.run(block)
        assert all(server.poll() is None for server in reader.servers), reader.logs()
    for words in SAYS.get(page, ()):
        assert words in reader.written
    for name, size in SIZES.get(page, {}).items():
        assert Image.open(tmp_path / name).size == size
    assert "Traceback" not in reader.logs()


def in_order(blocks: list[Block]) -> list[Block]:
    """Those that are run; Python goes on from block to block, so that all of it is one program, at the end."""
    shell = [block for block in blocks if block.is_run and block.language == "sh"]
    python = [block for block in blocks if block.is_run and block.language == "python"]
    program = "".join(block.text for block in python)
    return [*shell, *(Block(each.page, each.line, "python", program, "") for each in python[:1])]


def test_every_part_of_the_api_has_an_example() -> None:
    shell = [block.text for block in BLOCKS if block.page == "docs/api.md" and block.language == "sh"]
    python = "".join(block.text for block in BLOCKS if block.page == "docs/api.md" and block.language == "python")
    for path in ("images/generations", "images/edits", "images/jobs", "files"):
        assert any(f"http://127.0.0.1:8000/v1/{path}" in text for text in shell)
    calls = ("images.generate(", "images.edit(", "files.create(", "batches.create(", "stream=True", "Idempotency-Key")
    for call in calls:
        assert call in python


def test_options_that_blocks_give_our_commands_exist() -> None:
    """Also of those that cannot be run here."""
    used = [
        (block, "gateway" if found[1] else "stage" if found[2] else "", found[3])
        for block in BLOCKS
        if block.language == "sh"
        for command in block.commands()
        for found in OURS.finditer(command)
    ]
    assert len(used) > 40
    for block, implied, words in used:
        command = command_of(implied, words.split())
        known = help_of(*command)
        for option in re.findall(r"(?:^|\s)(--[a-z][\w-]*)", words):
            assert re.search(rf"(?<![\w-]){option}(?![\w-])", known), f"{block}: {' '.join(command)} has no {option}"


def command_of(implied: str, words: list[str]) -> list[str]:
    """The command and subcommand of ``disagfusion`` that ``words`` call."""
    names = []
    for word in words[:2]:
        if not re.fullmatch(r"[a-z]+", word):
            break
        names.append(word)
    if implied and names[:1] in (["keys"], ["config"], ["profile"]):
        return names
    if implied:
        return [implied]
    return names if names[:1] in (["keys"], ["jobs"], ["batch"], ["fleet"]) else names[:1]
