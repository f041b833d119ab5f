"""One answer for all requests that show the same ``Idempotency-Key``.

``Run`` is one answer as it is made, told to everybody who waits for it. ``Once`` holds the runs of this process, and
ends one that nobody waits for. ``Keeper`` is what outlives them: who generates, of all gateways on one database, and
the answers of the last day.
"""
