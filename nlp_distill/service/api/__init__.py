"""The HTTP API; its contract is `openapi.json`, which a test compares."""
