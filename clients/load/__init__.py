"""Measures a service under load. What it does: ``arrivals`` (when), ``kinds`` (what), ``sending``, ``summary``."""
