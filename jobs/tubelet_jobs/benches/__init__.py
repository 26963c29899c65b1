"""What ``tubelet bench KIND`` runs: one module a kind, with ``run(options) -> rows``."""
