"""Alembic's: ``versions/`` holds one revision per change of the tables."""
