"""The dashboard is made by its program, and asks for nothing that is not there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "deploy" / "observability"
NAME = re.compile(r"\b(?:disagfusion|http_server|gen_ai)_[a-z_]+\b")
SUFFIX = re.compile(r"_(bucket|sum|count)$")


def test_it_is_made_by_its_program() -> None:
    made = subprocess.run([sys.executable, FOLDER / "dashboard.py"], check=True, capture_output=True, text=True).stdout
    assert (FOLDER / "grafana/dashboards/disagfusion.json").read_text() == made


def test_it_and_the_rules_ask_for_metrics_that_exist() -> None:
    documented = set(re.findall(r"^\| `(\w+)`", (ROOT / "docs/metrics.md").read_text(), re.MULTILINE))
    labels = set(re.findall(r"`(\w+)`", (ROOT / "docs/metrics.md").read_text())) - documented
    for file in ("dashboard.py", "rules.yml"):
        asked = {SUFFIX.sub("", name) for name in NAME.findall((FOLDER / file).read_text())} - labels
        assert asked
        assert asked <= documented, file


def test_what_the_compose_file_mounts_is_there() -> None:
    mounted = re.findall(r"\./observability/([^:\s\"]+):", (FOLDER / "compose.yaml").read_text())
    assert len(mounted) == 5
    assert [name for name in mounted if not (FOLDER / name).exists()] == []
