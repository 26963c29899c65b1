"""``python -m tubelet_jobs`` is the ``tubelet`` command."""

import os
import sys

# Without -P the working folder comes first on the path, before anything that is imported from here on.
if not sys.flags.safe_path and sys.path[:1] == [os.getcwd()]:
    del sys.path[0]

from tubelet_jobs.cli import main

main()
