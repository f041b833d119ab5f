"""The documentation site: ``docs/`` and a reference made from the code, built by Zensical. ``make docs`` runs it."""
