"""Which videos exist: listing, labels, splits and the manifest, the table that all other parts work from."""
