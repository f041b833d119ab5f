"""The operator's say in what is made: prompts and pictures are shown to an HTTP hook."""
