"""What people look at: the page of labelled videos."""
