"""The scenario suite of the elastic scheduler: twelve workloads, the baselines, and the goals they are judged by.

``python -m benchmarks.scheduling`` runs it and writes ``docs/results``. One module per experiment: it names the runs it
needs (``tasks``) and turns what came of them into rows and tables (``report``). Runs are independent of each other and
are spread over processes.
"""
