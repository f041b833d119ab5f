"""The process: how its parts are put together, local stage servers, the garbage collector."""
