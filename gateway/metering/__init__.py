"""Who used what: a record per request, gathered in memory and written in batches, off the request's way."""
