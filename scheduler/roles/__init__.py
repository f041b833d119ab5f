"""Which server holds which roles: demand, the fluid bound, the solver, and when to move. Start at ``policy.py``."""
