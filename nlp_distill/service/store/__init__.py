"""What the service knows, in SQLite: jobs, attempts, events, metrics, files, artifacts, tokens, workers."""
