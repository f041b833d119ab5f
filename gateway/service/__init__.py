"""Requests on their way through the stages: the scheduler's shell, and what operators see and order."""
