"""The HTTP API, the dispatcher around the scheduler, and the control and data sockets."""
