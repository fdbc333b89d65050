"""What every web process of ours shares: problem documents, the guard, and where it may listen. No torch."""
