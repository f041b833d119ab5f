"""The twin: stage servers, network, clients and faults in virtual time, around the real ``Scheduler``.

Start at ``engine.simulate``; ``setup`` has what a scenario is made of, ``workload`` what arrives, ``metrics`` what came
of it. Deterministic by seed. Nothing here is used by the gateway.
"""
