"""What crosses a process boundary: messages, values, errors, trace context. No sockets, no torch."""
