"""Which videos exist: storage, listing, labels, splits, the manifest."""
