"""One thin file a job, and the command line over them."""
