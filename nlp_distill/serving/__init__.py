"""Predictions over HTTP: an engine a process, a bounded queue, the routes, the page. The web process loads no torch."""
