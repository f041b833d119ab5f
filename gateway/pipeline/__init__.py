"""The scheduler's surroundings: requests become graphs, messages become events, actions become messages."""
