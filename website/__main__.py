"""``python -m website``: builds the site into out/site. Exit status 1 where a link or an anchor leads nowhere."""

from __future__ import annotations

import shutil
import subprocess
import sys

from website.reference import pages
from website.source import ROOT, copy_documents

CONFIGURATION = ROOT / "zensical.toml"
SOURCE, SITE = ROOT / "out" / "site-source", ROOT / "out" / "site"
"""As the configuration names them."""


def main() -> int:
    for folder in (SOURCE, SITE):
        shutil.rmtree(folder, ignore_errors=True)
    copy_documents(SOURCE)
    for name, text in pages():
        (SOURCE / "reference" / name).write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean", "--config-file", str(CONFIGURATION)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603 # ours alone
    if done.returncode:
        sys.stderr.write(_without_traceback(done.stdout + done.stderr))
        return 1
    print(f"{SITE.relative_to(ROOT)}/index.html: {sum(1 for _ in SITE.rglob('*.html'))} pages")
    return 0


def _without_traceback(text: str) -> str:
    """Zensical ends a strict build by an exception, below what it found. Any other exception is shown."""
    return text.partition("Traceback")[0] if "--strict flag is set" in text else text


if __name__ == "__main__":
    sys.exit(main())
