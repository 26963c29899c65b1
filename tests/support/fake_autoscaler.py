"""Ray's autoscaler with fake nodes, on this machine: `python fake_autoscaler.py OPTIONS OF RAY'S MONITOR`.

``AutoscalingCluster`` begins with `ray stop`, which ends the clusters of others, too, and Ray's wheel lacks
the file that the settings of fake nodes begin with. Fake nodes cannot be told how much memory they have.
Each has a folder of its own below ``FAKE_NODES``: one that starts empties the working folders in its own.
"""

from __future__ import annotations

import os
import runpy
import tempfile
from collections.abc import Callable
from typing import Any


def _without_memory(create: Callable[..., None]) -> Callable[..., None]:
    def create_node(
        self: Any, config: Any, tags: Any, count: int, resources: dict[str, float], labels: Any
    ) -> None:
        kept = {name: amount for name, amount in resources.items() if name != "memory"}
        create(self, config, tags, count, kept, labels)

    return create_node


def _in_folder(params: Callable[..., Any]) -> Callable[..., Any]:
    def make(**options: Any) -> Any:
        return params(temp_dir=tempfile.mkdtemp(dir=os.environ["FAKE_NODES"]), **options)

    return make


if __name__ == "__main__":
    from ray._private import parameter
    from ray.autoscaler._private import util
    from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider

    util._get_default_config = lambda provider: {}
    parameter.RayParams = _in_folder(parameter.RayParams)
    create = FakeMultiNodeProvider._create_node_with_resources_and_labels
    FakeMultiNodeProvider._create_node_with_resources_and_labels = _without_memory(create)
    runpy.run_module("ray.autoscaler.v2.monitor", run_name="__main__")
