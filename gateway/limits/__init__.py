"""How much one API key may ask for: requests and pictures per minute, requests at a time, device-seconds per month."""
