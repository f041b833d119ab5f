"""What the gateway counts and measures, for Prometheus. Knows the scheduler's view and events; changes nothing.

Start to read at ``instruments.py``, which has all that is counted as it happens; what can be read off the state is read
when somebody scrapes (``fleet.py``). docs/metrics.md lists all of it.
"""
