"""A process of its own in which those meet who cannot connect to each other; ``wire.relay`` is what is said to it."""
