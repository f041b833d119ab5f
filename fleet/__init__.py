"""What runs where: one description of a fleet, and the launchers that start it. Computes nothing and serves nothing."""
