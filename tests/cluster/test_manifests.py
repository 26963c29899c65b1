"""The cluster files are valid, agree with each other and with the versions tested."""

from __future__ import annotations

import functools
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from support import SHARED
from tubelet_jobs.remote.plan import plan_job

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
KUBERAY = sorted(path.name for path in (CLUSTER / "kuberay").glob("ray*.yaml"))
AWS = yaml.safe_load((CLUSTER / "aws.yaml").read_text("utf-8"))


def _pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    return dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))


def _load(name: str) -> dict[str, Any]:
    document = yaml.safe_load((CLUSTER / "kuberay" / name).read_text("utf-8"))
    assert isinstance(document, dict)
    return document


def _cluster(name: str) -> dict[str, Any]:
    spec: dict[str, Any] = _load(name)["spec"]
    return spec.get("rayClusterSpec", spec)


def _groups(name: str) -> list[dict[str, Any]]:
    spec = _cluster(name)
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def _unknown(value: Any, schema: dict[str, Any], path: str = "") -> Iterator[str]:
    """Fields that an OpenAPI schema does not name: a server would drop them without a word."""
    if isinstance(value, list):
        for number, item in enumerate(value):
            yield from _unknown(item, schema.get("items", {}), f"{path}[{number}]")
    if not isinstance(value, dict) or schema.get("x-kubernetes-preserve-unknown-fields"):
        return
    named, extra = schema.get("properties"), schema.get("additionalProperties")
    for key, item in value.items():
        if named and key in named:
            yield from _unknown(item, named[key], f"{path}.{key}")
        elif isinstance(extra, dict):
            yield from _unknown(item, extra, f"{path}.{key}")
        elif not extra and (named or path):
            yield f"{path}.{key}"


@functools.cache
def _crd(kind: str) -> dict[str, Any]:
    file = SHARED / "schemas" / f"ray.io_{kind.lower()}s.yaml"
    document = yaml.load(file.read_bytes(), Loader=yaml.CSafeLoader)  # 1 MB: minutes without the C loader
    version = next(v for v in document["spec"]["versions"] if v["name"] == "v1")
    schema: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    return schema


# The definitions lie beside some checkouts only; there, each file is one more case.
HAVE_CRDS = [name for name in KUBERAY if (SHARED / "schemas").is_dir()]


@pytest.mark.parametrize("name", HAVE_CRDS)
def test_kuberay_file_is_valid_and_has_no_unknown_field(name: str) -> None:
    document = _load(name)
    schema = _crd(document["kind"])
    jsonschema.validate(document, schema)
    body = {"spec": document["spec"]}
    assert list(_unknown(body, {"properties": {"spec": schema["properties"]["spec"]}})) == []


@pytest.mark.parametrize("name", HAVE_CRDS[:1])
def test_unknown_fields_are_found(name: str) -> None:
    document = _load(name)
    schema = {"properties": {"spec": _crd(document["kind"])["properties"]["spec"]}}
    document["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["imagePullPolice"] = "Always"
    document["spec"]["autoscaling"] = True
    found = list(_unknown({"spec": document["spec"]}, schema))
    assert sorted(found) == [
        ".spec.autoscaling",
        ".spec.headGroupSpec.template.spec.containers[0].imagePullPolice",
    ]


def test_there_is_a_cluster_and_a_job() -> None:
    assert sorted(_load(name)["kind"] for name in KUBERAY) == ["RayCluster", "RayJob"]
    assert {_load(name)["apiVersion"] for name in KUBERAY} == {"ray.io/v1"}


@pytest.mark.parametrize("name", KUBERAY)
def test_versions_agree(name: str) -> None:
    assert _cluster(name)["rayVersion"] == _pins()["ray"] == ray.__version__


def test_all_use_one_image() -> None:
    images = {
        container["image"]
        for name in KUBERAY
        for group in _groups(name)
        for container in group["template"]["spec"]["containers"]
    }
    assert images == {AWS["docker"]["image"]}


@pytest.mark.parametrize("name", KUBERAY)
def test_token_authentication_is_on(name: str) -> None:
    assert _cluster(name)["authOptions"]["mode"] == "token"


@pytest.mark.parametrize("name", KUBERAY)
def test_pods_get_what_they_ask_for(name: str) -> None:
    """Ray reads a pod's limits as its resources: lower requests would be promises a node can't keep."""
    for group in _groups(name):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        resources = container["resources"]
        assert resources["requests"] == resources["limits"]
        # Without a memory volume /dev/shm has 64 MB, and Ray puts its object store on disk.
        (shm,) = (volume for volume in pod["volumes"] if volume["emptyDir"]["medium"] == "Memory")
        assert {"name": shm["name"], "mountPath": "/dev/shm"} in container["volumeMounts"]


@pytest.mark.parametrize("name", KUBERAY)
def test_head_takes_no_work_and_is_not_on_spot(name: str) -> None:
    head = _cluster(name)["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert "spot" not in json.dumps(head["template"]["spec"].get("nodeSelector"))
    assert "tolerations" not in head["template"]["spec"]


@pytest.mark.parametrize("name", KUBERAY)
def test_workers_scale_within_their_bounds_and_have_gpus(name: str) -> None:
    groups = _cluster(name)["workerGroupSpecs"]
    for group in groups:
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    limits = [group["template"]["spec"]["containers"][0]["resources"]["limits"] for group in groups]
    assert any(limit.get("nvidia.com/gpu") == "1" for limit in limits)


def test_cluster_grows_and_shrinks() -> None:
    spec = _cluster("raycluster.yaml")
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["autoscalerOptions"]["idleTimeoutSeconds"] > 0
    assert all(group["minReplicas"] == 0 for group in spec["workerGroupSpecs"])


def test_job_that_is_retried_is_one_that_resumes() -> None:
    spec = _load("rayjob.yaml")["spec"]
    words = shlex.split(spec["entrypoint"])
    assert words[0] == "tubelet"
    plan_job(words[1:], env={})  # the command line takes it, and all its places can be reached
    assert spec["backoffLimit"] > 0
    assert "--resume" in words
    assert spec["shutdownAfterJobFinishes"] is True


def test_ray_up_file_is_valid() -> None:
    schema = json.loads((Path(ray.__file__).parent / "autoscaler/ray-schema.json").read_text("utf-8"))
    jsonschema.validate(AWS, schema)
    assert AWS["head_node_type"] in AWS["available_node_types"]
    for node in AWS["available_node_types"].values():
        assert node.get("min_workers", 0) <= node.get("max_workers", AWS["max_workers"]) <= AWS["max_workers"]


def test_ray_up_nodes_share_the_token() -> None:
    starts = [
        line for line in AWS["head_start_ray_commands"] + AWS["worker_start_ray_commands"] if "start" in line
    ]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in line for line in starts)
    assert any(path.endswith(".ray/auth_token") for path in AWS["file_mounts"])


def test_mlflow_service_reaches_its_server() -> None:
    documents = list(yaml.safe_load_all((CLUSTER / "kuberay/mlflow.yaml").read_text("utf-8")))
    parts = {document["kind"]: document for document in documents}
    pod = parts["Deployment"]["spec"]["template"]
    assert parts["Service"]["spec"]["selector"] == pod["metadata"]["labels"]
    (container,) = pod["spec"]["containers"]
    assert parts["Service"]["spec"]["ports"][0]["port"] == container["ports"][0]["containerPort"]
    assert (
        pod["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"]
        == (parts["PersistentVolumeClaim"]["metadata"]["name"])
    )
    assert parts["Deployment"]["spec"]["replicas"] == 1  # SQLite


def test_mlflow_server_knows_its_options() -> None:
    from mlflow.cli import server

    known = {option for parameter in server.params for option in parameter.opts}
    text = (CLUSTER / "kuberay/mlflow.yaml").read_text("utf-8")
    given = set(re.findall(r"^\s+- (--[a-z-]+)=", text, re.MULTILINE))
    assert given
    assert given <= known


DOCKERFILE = (CLUSTER / "Dockerfile").read_text("utf-8")


def test_dockerfile_copies_what_exists_and_is_let_through() -> None:
    ignored = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    assert ignored[0] == "*"
    copied = [words[:-1] for words in map(str.split, re.findall(r"^COPY (.+)$", DOCKERFILE, re.MULTILINE))]
    sources = [source for words in copied for source in words]
    assert {"pipeline", "jobs", "pyproject.toml"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists(), source
        assert f"!{source}" in ignored, source


def test_dockerfile_has_the_pinned_versions() -> None:
    assert f"TORCH=torch=={_pins()['torch']}" in DOCKERFILE
    assert "--constraint constraints.txt" in DOCKERFILE
    readme = re.search(r'readme = "(.+)"', (ROOT / "pyproject.toml").read_text("utf-8"))
    assert readme is not None
    assert readme.group(1) in DOCKERFILE


def test_nothing_runs_as_root() -> None:
    users = re.findall(r"^USER (\w+)$", DOCKERFILE, re.MULTILINE)
    assert users
    assert users[-1] != "root"
