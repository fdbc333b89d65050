"""Any models side by side: found, scored on the same rows, timed in turns, each in a process of its own."""
