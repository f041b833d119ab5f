"""A fleet on this machine: processes, and a desk at which other shells ask for something."""
