"""Label files as people have them: a module per family of layouts, and a registry that tells them apart."""
