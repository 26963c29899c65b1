"""Takes a video out of what was made of it."""
