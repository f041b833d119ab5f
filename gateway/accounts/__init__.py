"""Who may call, for what: callers, their keys, and the command that makes and revokes them."""
