"""Order, fairness, placement, admission, batching, preemption and roles: what the core leaves open, decided well.

``build.elastic_policies`` makes one set for one scheduler; ``settings`` has every knob. See docs/scheduling.md.
"""
