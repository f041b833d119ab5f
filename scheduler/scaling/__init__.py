"""How many servers each pool should have. Pure: driven by the scheduler's events, read by whoever starts servers.

``pools`` (what may be started), ``forecast`` (what will arrive), ``starts`` (what starting takes), ``capacity`` (what
servers carry), ``outlook`` (whether they carry what is predicted), ``drains`` (which servers go) and ``scaler``, which
decides by them.
"""
