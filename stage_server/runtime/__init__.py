"""The stage server itself: pure decisions (``core`` and what it is made of), and thin shells of sockets and threads."""
