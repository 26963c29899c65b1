"""``python -m tubelet_jobs`` is the ``tubelet`` command."""

from tubelet_jobs.cli import main

main()
