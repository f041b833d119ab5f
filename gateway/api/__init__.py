"""The HTTP API: requests in, ``ImageService`` behind, OpenAI's formats out. It knows nothing of sockets or stages."""
