"""Predicted cost of stage jobs. Start at ``model.CostModel``."""
