"""What passes between two stage servers, and what the device loses by it."""
