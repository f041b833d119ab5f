"""Work that outlives its connection: who runs a job and how it ends, batches, webhooks. Knows no requests."""
