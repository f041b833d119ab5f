"""HTTP clients: nothing of ours is imported here."""
