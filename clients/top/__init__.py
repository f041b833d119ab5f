"""The pipeline in a terminal, fed by the gateway's stream of differences (docs/page.md)."""
