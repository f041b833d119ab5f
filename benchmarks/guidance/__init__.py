"""Guidance on two servers: what the second one gains, what swapping halves takes, and what the other requests pay."""
