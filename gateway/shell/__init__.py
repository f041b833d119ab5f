"""The process: how its parts are put together, local stage servers, traces, the garbage collector."""
