"""Decisions only: events in, actions out. No I/O, no clock, no randomness."""
