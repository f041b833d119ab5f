"""The data plane of a stage server: the store of outputs, the socket that serves them, and the one that fetches."""
