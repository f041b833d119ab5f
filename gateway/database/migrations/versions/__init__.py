"""Revisions, in one line of descent. A released one is never changed."""
