"""Forms of the student to deliver, each proven on real rows."""
