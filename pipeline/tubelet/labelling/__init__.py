"""Every object labelled exactly once: the job, its plan, windows, export."""
