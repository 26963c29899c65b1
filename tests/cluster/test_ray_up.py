"""The file for `ray up`: valid by Ray's own schema, GPUs visible, no keys in it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml

AWS = yaml.safe_load((Path(__file__).resolve().parents[2] / "cluster/aws.yaml").read_text("utf-8"))
SCHEMA = json.loads((Path(ray.__file__).parent / "autoscaler/ray-schema.json").read_text("utf-8"))
NODES = AWS["available_node_types"]


def test_file_is_valid() -> None:
    jsonschema.validate(AWS, SCHEMA)
    assert AWS["head_node_type"] in NODES
    for node in NODES.values():
        assert node.get("min_workers", 0) <= node.get("max_workers", AWS["max_workers"]) <= AWS["max_workers"]


@pytest.mark.parametrize(
    "path",
    [
        ["max_workers"],
        ["docker", "image"],
        ["available_node_types", "gpu", "docker", "worker_run_options"],
        ["available_node_types", "gpu", "node_config"],
        ["head_start_ray_commands"],
    ],
)
def test_a_field_that_is_misspelt_is_found(path: list[str]) -> None:
    mutant = copy.deepcopy(AWS)
    place: Any = mutant
    for part in path[:-1]:
        place = place[part]
    place[f"{path[-1]}x"] = place.pop(path[-1])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(mutant, SCHEMA)


def test_the_container_sees_the_gpus_of_its_node() -> None:
    assert NODES["gpu"]["docker"]["worker_run_options"] == ["--gpus all"]
    assert "docker" not in NODES["cpu"]


def test_head_takes_no_work_and_is_not_on_spot() -> None:
    assert NODES["head"]["resources"]["CPU"] == 0
    assert "InstanceMarketOptions" not in NODES["head"]["node_config"]
    assert all("InstanceMarketOptions" in NODES[name]["node_config"] for name in ("cpu", "gpu"))


def test_nodes_reach_the_bucket_by_their_profile() -> None:
    assert {node["node_config"]["IamInstanceProfile"]["Arn"] for node in NODES.values()} == {
        "arn:aws:iam::ACCOUNT:instance-profile/tubelet"
    }
    assert "AWS_" not in json.dumps(AWS)


def test_nodes_share_the_token_and_spill_to_their_disk() -> None:
    starts = AWS["head_start_ray_commands"][1:] + AWS["worker_start_ray_commands"][1:]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token ray start" in line for line in starts)
    assert all("--object-spilling-directory=" in line for line in starts)
    assert any(path.endswith(".ray/auth_token") for path in AWS["file_mounts"])
