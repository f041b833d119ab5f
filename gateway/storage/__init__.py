"""What outlives a request. The HTTP side never looks behind it."""
