"""Ray's autoscaler with fake nodes, on this machine: `python fake_autoscaler.py OPTIONS OF RAY'S MONITOR`.

``AutoscalingCluster`` begins with `ray stop`, which ends the clusters of others, too, and Ray's wheel lacks
the file that the settings of fake nodes begin with.
"""

from __future__ import annotations

import runpy

if __name__ == "__main__":
    from ray.autoscaler._private import util

    util._get_default_config = lambda provider: {}
    runpy.run_module("ray.autoscaler.v2.monitor", run_name="__main__")
