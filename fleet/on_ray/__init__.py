"""A fleet on a Ray cluster: an actor for each process, and a detached one that supervises them."""
