"""Autoscaling in simulation: prediction, HPA on utilisation, KEDA on queue length, and a plan that knows the future.

``workloads`` (what is asked for), ``contenders`` (who decides), ``foresight`` (the plan), ``runs`` (one simulation),
``report`` (rows and tables).
"""
