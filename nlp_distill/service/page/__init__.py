"""The page of the job service: Jinja2, htmx, uPlot; it calls what the API calls, and decides nothing itself."""
