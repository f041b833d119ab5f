"""Several gateways that stand in for each other: each with its stage servers is a cell."""
