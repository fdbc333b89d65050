"""The job service: jobs, a worker, an HTTP API, a client. No torch: runs are processes of their own."""
