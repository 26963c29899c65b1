"""Sending a job to a Ray cluster: what is sent (`plan`), and how (`client`)."""
