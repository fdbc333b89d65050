"""What a run says of itself: `results.json`, and the table and verdict that people read."""
