"""``python -m stage_server profile``: times a model on this device and writes its cost profile (docs/profiles.md)."""
