"""Pictures that clients send, decoded in processes of their own: beside the event loop, and apart from it."""
