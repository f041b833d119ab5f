"""docs/metrics.md says what there is, and what there is has a unit and a bound."""

from __future__ import annotations

from pathlib import Path

from gateway.metrics.document import document
from gateway.metrics.instruments import Instruments

DOCS = Path(__file__).parent.parent.parent / "docs"


def test_the_document_is_that_of_the_code() -> None:
    told = (DOCS / "metrics.md").read_text()
    assert told == document(), "run: python -m gateway.metrics.document > docs/metrics.md"


def test_names_are_of_known_families_and_counters_are_totals() -> None:
    instruments = Instruments()
    for family in instruments.registry.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        if name in instruments.labels:
            assert name.startswith(("disagfusion_", "http_server_", "gen_ai_")), name
            assert family.documentation.endswith("."), name
