"""The files for KubeRay are valid alone and as overlays, and agree with each other and with the versions."""

from __future__ import annotations

import copy
import functools
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from support import SHARED
from support.cluster import dashboard_queries, kubectl, made_secrets
from support.manifests import Document, crd_faults, faults, own_faults
from tubelet._version import __version__
from tubelet_jobs.remote.plan import plan_job

ROOT = Path(__file__).resolve().parents[2]
KUBERAY = ROOT / "cluster/kuberay"
# Whatever is neither a list of files nor a patch is complete and valid alone.
FILES = sorted(
    path.relative_to(KUBERAY).as_posix()
    for path in KUBERAY.rglob("*")
    if path.is_file() and path.name != "kustomization.yaml" and "patch" not in path.name
)
JOBS = ["jobs/train.yaml", "jobs/label.yaml", "overlays/production/nightly-label.yaml"]
RAY_FILES = ["base/raycluster.yaml", *JOBS]


def _documents(name: str) -> list[Document]:
    return copy.deepcopy(_read(name))


@functools.cache
def _read(name: str) -> list[Document]:
    return list(yaml.load_all((KUBERAY / name).read_bytes(), Loader=yaml.CSafeLoader))


def _ray(name: str) -> Document:
    (found,) = (document for document in _documents(name) if document["apiVersion"] == "ray.io/v1")
    return found


def _job(name: str) -> Document:
    """The spec of a RayJob, that of a RayCronJob's template too."""
    spec: Document = _ray(name)["spec"]
    return spec.get("jobTemplate", spec)


def _cluster(name: str) -> Document:
    spec: Document = _job(name)
    return spec.get("rayClusterSpec", spec)


def _groups(name: str) -> list[Document]:
    spec = _cluster(name)
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def _all() -> list[Document]:
    return [document for name in FILES for document in _documents(name)]


# --- Each file


@pytest.mark.parametrize("name", FILES)
def test_file_is_complete_and_valid_alone(name: str) -> None:
    documents = _documents(name)
    assert documents
    for document in documents:
        assert faults(document) == []
        namespace = document["metadata"].get("namespace")
        assert namespace == (None if document["kind"] == "Namespace" else "tubelet")


def test_there_is_what_a_cluster_needs() -> None:
    kinds = {document["kind"] for document in _all()}
    assert {"RayCluster", "RayJob", "RayCronJob", "NetworkPolicy", "PodDisruptionBudget"} <= kinds
    assert "Secret" not in kinds  # made by a command, never in a file
    text = "".join((KUBERAY / name).read_text("utf-8") for name in FILES)
    assert not re.search(r"AWS_(ACCESS_KEY|SECRET)|password:\s*\S", text)
    assert "karpenter.sh/capacity-type:" not in text  # a selector that no other cluster's nodes satisfy


def _fields(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all fields whose names are Kubernetes', not ours."""
    if isinstance(value, list):
        for number, item in enumerate(value):
            yield from _fields(item, (*path, number))
    elif isinstance(value, dict):
        labels = path and path[-1] == "selector" and "matchLabels" not in value  # of a Service
        ours = path and (path[-1] in _MAPS or labels)
        for name, item in value.items():
            if not ours:
                yield (*path, name)
            yield from _fields(item, (*path, name))


_MAPS = {"labels", "annotations", "matchLabels", "data", "requests", "limits", "rayStartParams"}


def _mutants() -> Iterator[tuple[str, Document, str]]:
    """Each document with one field misspelt, once for each kind of field that there is."""
    seen = set()
    for name in FILES:
        for document in _documents(name):
            for path in _fields(document):
                kind = (document["kind"], *(part for part in path if isinstance(part, str)))
                if kind in seen or (len(path) == 1 and path[0] in ("apiVersion", "kind")):
                    continue
                seen.add(kind)
                mutant = copy.deepcopy(document)
                place: Any = mutant
                for part in path[:-1]:
                    place = place[part]
                place[f"{path[-1]}x"] = place.pop(path[-1])
                yield name, mutant, ".".join(map(str, path))


@pytest.mark.parametrize("every", [24, pytest.param(1, marks=pytest.mark.slow)])
def test_a_field_that_is_misspelt_is_found(every: int) -> None:
    mutants = list(_mutants())
    assert len(mutants) > 300
    unseen = [f"{name}: {path}" for name, mutant, path in mutants[::every] if not own_faults(mutant)]
    assert unseen == []


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("base/raycluster.yaml", ["spec", "workerGroupSpecs", 0, "maxReplicas"], "many"),
        ("jobs/train.yaml", ["spec", "backoffLimit"], "3"),
        ("base/mlflow.yaml", ["spec", "replicas"], "two"),
        (
            "base/mlflow.yaml",
            ["spec", "template", "spec", "containers", 0, "ports", 0, "containerPort"],
            "http",
        ),
    ],
)
def test_a_value_of_another_type_is_found(name: str, path: list[Any], value: Any) -> None:
    document = _documents(name)[0]
    place: Any = document
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    assert faults(document)


@pytest.mark.skipif(
    not (SHARED / "schemas").is_dir(), reason="KubeRay's definitions are not beside the checkout"
)
@pytest.mark.parametrize("name", RAY_FILES)
def test_kuberays_own_definitions_are_asked(name: str) -> None:
    """They let unknown fields pass, so those are looked for; and they know which values a field takes."""
    document = _ray(name)
    assert list(crd_faults(document)) == []
    spec = document["spec"].get("jobTemplate", document["spec"])
    spec.get("rayClusterSpec", spec)["authOptions"]["mode"] = "password"
    assert list(crd_faults(document))


# --- The overlays


@functools.cache
def _rendered(overlay: str) -> str:
    folder = KUBERAY / "overlays" / overlay
    done = subprocess.run(
        [kubectl(), "kustomize", folder], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # nothing deprecated
    return done.stdout


def _overlay(name: str) -> dict[tuple[str, str], Document]:
    documents = list(yaml.load_all(_rendered(name), Loader=yaml.CSafeLoader))
    return {(document["kind"], document["metadata"]["name"]): document for document in documents}


@pytest.mark.parametrize("overlay", ["small", "production"])
def test_overlay_renders_to_what_is_valid(overlay: str) -> None:
    documents = _overlay(overlay)
    assert [fault for document in documents.values() for fault in faults(document)] == []
    assert {("RayCluster", "tubelet"), ("Deployment", "mlflow"), ("Namespace", "tubelet")} <= set(documents)
    # Each pod finds the configuration, the account and the service that it names.
    accounts = {name for kind, name in documents if kind == "ServiceAccount"}
    for pod in _pods(documents.values()):
        assert pod.get("serviceAccountName", next(iter(accounts))) in accounts
    uri = documents["ConfigMap", "tubelet-env"]["data"]["MLFLOW_TRACKING_URI"]
    assert uri == "http://mlflow:5000"
    assert documents["Service", "mlflow"]["spec"]["ports"][0]["port"] == 5000


def test_overlays_differ_as_they_say() -> None:
    small, production = _overlay("small"), _overlay("production")
    most = {
        name: [group["maxReplicas"] for group in overlay["RayCluster", "tubelet"]["spec"]["workerGroupSpecs"]]
        for name, overlay in (("small", small), ("production", production))
    }
    assert most == {"small": [4, 1], "production": [100, 32]}
    assert ("StatefulSet", "postgres") in small
    assert ("StatefulSet", "postgres") not in production
    assert ("RayCronJob", "nightly-label") in production
    assert ("RayCronJob", "nightly-label") not in small
    assert production["Deployment", "mlflow"]["spec"]["replicas"] == 2


def _pods(documents: Any) -> Iterator[Document]:
    """The specs of all pods in ``documents``."""
    for document in documents:
        yield from _found(document, "template")


def _found(value: Any, name: str) -> Iterator[Document]:
    if isinstance(value, dict):
        for key, item in value.items():
            if key == name and "containers" in item.get("spec", {}):
                yield item["spec"]
            yield from _found(item, name)
    elif isinstance(value, list):
        for item in value:
            yield from _found(item, name)


# --- Ray's clusters and jobs


def _pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    return dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))


@pytest.mark.parametrize("name", RAY_FILES)
def test_versions_agree(name: str) -> None:
    assert _cluster(name)["rayVersion"] == _pins()["ray"] == ray.__version__


def test_all_that_is_ours_is_one_image() -> None:
    images = {container["image"] for pod in _pods(_all()) for container in pod["containers"]}
    ours = {image for image in images if "tubelet" in image}
    aws = yaml.safe_load((ROOT / "cluster/aws.yaml").read_text("utf-8"))
    assert ours == {aws["docker"]["image"]} == {f"REGISTRY/tubelet:{__version__}"}
    for image in images:  # no `latest`, nor a tag that moves within a version
        assert re.fullmatch(r"[\w./]+:v?\d+\.\d+(\.\d+)?", image), image


@pytest.mark.parametrize("name", RAY_FILES)
def test_cluster_asks_for_its_token_and_scales(name: str) -> None:
    spec = _cluster(name)
    assert spec["authOptions"]["mode"] == "token"
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["autoscalerOptions"]["version"] == "v2"
    assert spec["autoscalerOptions"]["idleTimeoutSeconds"] > 0
    for group in spec["workerGroupSpecs"]:
        assert 0 <= group["minReplicas"] <= group["replicas"] < group["maxReplicas"]
    assert {group["groupName"] for group in spec["workerGroupSpecs"]} == {"cpu", "gpu"}


@pytest.mark.parametrize("name", RAY_FILES)
def test_pods_get_what_they_ask_for_and_spill_to_a_disk_of_their_own(name: str) -> None:
    """Ray reads a pod's limits as its resources: lower requests would be promises a node can't keep."""
    for group in _groups(name):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        resources = container["resources"]
        assert resources["requests"] == resources["limits"]
        # The operator mounts /dev/shm of the memory request; a volume of ours would make it smaller.
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert list(mounts) == [group["rayStartParams"]["object-spilling-directory"]] == ["/spill"]
        (volume,) = pod["volumes"]
        assert volume["name"] == "spill"
        spill, disk = volume["emptyDir"]["sizeLimit"], resources["limits"]["ephemeral-storage"]
        assert int(spill.removesuffix("Gi")) < int(disk.removesuffix("Gi"))
        assert ("nvidia.com/gpu" in resources["limits"]) == (group.get("groupName") == "gpu")


@pytest.mark.parametrize("name", RAY_FILES)
def test_pods_own_nothing_that_a_strangers_file_could_use(name: str) -> None:
    head, *workers = _groups(name)
    for group in (head, *workers):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert pod["serviceAccountName"] == "tubelet"
    assert all(group["template"]["spec"]["automountServiceAccountToken"] is False for group in workers)


@pytest.mark.parametrize("name", RAY_FILES)
def test_head_takes_no_work_and_is_not_on_spot(name: str) -> None:
    head, *workers = _groups(name)
    assert head["rayStartParams"]["num-cpus"] == "0"
    pod = head["template"]["spec"]
    assert "tolerations" not in pod
    (term,) = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
        "nodeSelectorTerms"
    ]
    assert {rule["operator"] for rule in term["matchExpressions"]} == {"NotIn"}
    kept_off = {rule["key"] for rule in term["matchExpressions"]}
    for group in workers:  # wished for there, never required
        affinity = group["template"]["spec"]["affinity"]["nodeAffinity"]
        (kind,) = affinity
        assert kind.startswith("preferred")
        rules = [wish["preference"]["matchExpressions"][0] for wish in affinity[kind]]
        assert {rule["key"] for rule in rules} == kept_off
        assert {rule["operator"] for rule in rules} == {"In"}


@pytest.mark.parametrize("name", RAY_FILES)
def test_a_node_that_goes_leaves_time_for_a_checkpoint(name: str) -> None:
    for group in _groups(name)[1:]:
        pod = group["template"]["spec"]
        if group["groupName"] == "gpu":
            command = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1]
            slept = re.match(r"sleep (\d+);", command)
            assert slept is not None
            assert 60 <= int(slept[1]) <= pod["terminationGracePeriodSeconds"] - 30


@pytest.mark.parametrize("name", RAY_FILES)
def test_a_heads_node_is_not_drained(name: str) -> None:
    head = _groups(name)[0]["template"]["metadata"]
    assert "true" in head["annotations"]["karpenter.sh/do-not-disrupt"]
    budgets = [document for document in _all() if document["kind"] == "PodDisruptionBudget"]
    chosen = [b for b in budgets if b["spec"]["selector"]["matchLabels"].items() <= head["labels"].items()]
    assert [budget["spec"]["minAvailable"] for budget in chosen] == [1]


@pytest.mark.parametrize("name", JOBS)
def test_job_is_one_that_the_command_line_takes_and_that_goes_on(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (config,) = (d["data"] for d in _documents("base/config.yaml"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", config["MLFLOW_TRACKING_URI"])
    spec = _job(name)
    words = shlex.split(spec["entrypoint"])
    assert words[0] == "tubelet"
    assert plan_job(words[1:], env=config).loopback == ()  # all its places can be reached from any node
    assert spec["backoffLimit"] > 0
    assert words[1] == "label" or "--resume" in words
    assert spec["shutdownAfterJobFinishes"] is True


def test_training_starts_with_what_it_needs() -> None:
    spec = _job("jobs/train.yaml")
    least, most = map(int, re.findall(r"workers=(\d+)\.\.(\d+)", spec["entrypoint"])[0])
    (group,) = (g for g in spec["rayClusterSpec"]["workerGroupSpecs"] if g["groupName"] == "gpu")
    assert (group["minReplicas"], group["replicas"], group["maxReplicas"]) == (least, least, most)


def test_nights_do_not_overlap() -> None:
    """RayCronJob starts each job whatever became of the last: all tries of one end before the next begins."""
    spec = _job("overlays/production/nightly-label.yaml")
    assert spec["activeDeadlineSeconds"] * (spec["backoffLimit"] + 1) < 24 * 3600
    minute, hour, *every_day = _ray("overlays/production/nightly-label.yaml")["spec"]["schedule"].split()
    assert minute.isdecimal()
    assert hour.isdecimal()
    assert every_day == ["*"] * 3
    text = (KUBERAY / "overlays/production/nightly-label.yaml").read_text("utf-8")
    assert re.search(r"KubeRay \d+\.\d+ or newer with the feature gate RayCronJob", text)


# --- MLflow


def _of_kind(name: str, kind: str) -> Document:
    return next(document for document in _documents(name) if document["kind"] == kind)


def test_mlflow_service_reaches_its_server_and_its_probes_do() -> None:
    pod = _of_kind("base/mlflow.yaml", "Deployment")["spec"]["template"]
    service = _of_kind("base/mlflow.yaml", "Service")["spec"]
    assert service["selector"].items() <= pod["metadata"]["labels"].items()
    (container,) = pod["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports[service["ports"][0]["targetPort"]] == service["ports"][0]["port"] == 5000
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["path"] == "/health"
        assert container[probe]["httpGet"]["port"] in ports


def test_mlflow_server_knows_its_options_and_variables() -> None:
    from mlflow.cli import server

    known = {option for parameter in server.params for option in parameter.opts}
    (container,) = _of_kind("base/mlflow.yaml", "Deployment")["spec"]["template"]["spec"]["containers"]
    given = {argument.partition("=")[0] for argument in container["args"]}
    assert {"--app-name", "--artifacts-destination", "--allowed-hosts"} <= given <= known
    variables = {parameter.envvar for parameter in server.params}
    assert "MLFLOW_BACKEND_STORE_URI" in variables
    named = {item["name"]: item for item in container["env"]}
    assert "secretKeyRef" in named["MLFLOW_BACKEND_STORE_URI"]["valueFrom"]


def test_secrets_that_pods_want_are_those_that_the_command_makes(tmp_path: Path) -> None:
    made = made_secrets(tmp_path)
    wanted = set(re.findall(r"secretKeyRef: {name: mlflow, key: ([\w.-]+)}", _sources()))
    wanted |= set(re.findall(r"- {key: ([\w.-]+), path", _sources()))
    assert set(made["mlflow"]) == wanted
    assert set(made["tubelet-env"]) == {"MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"}
    login, database = made["mlflow"]["basic_auth.ini"], made["mlflow"]["backend-store-uri"]
    assert made["tubelet-env"]["MLFLOW_TRACKING_PASSWORD"] in login
    assert made["mlflow"]["postgres-password"] in database
    (postgres,) = (d["metadata"]["name"] for d in _all() if d["kind"] == "StatefulSet")
    assert f"@{postgres}:5432/mlflow" in database
    (tmp_path / "made").unlink()
    other = made_secrets(tmp_path, "postgresql+psycopg://me:a%40b@db/runs")
    assert other["mlflow"]["backend-store-uri"] == "postgresql+psycopg://me:a%40b@db/runs"
    parser = ConfigParser()
    parser.read_string(other["mlflow"]["basic_auth.ini"])
    assert parser["mlflow"]["database_uri"] == "postgresql+psycopg://me:a%40b@db/runs"


def _sources() -> str:
    return "".join((KUBERAY / name).read_text("utf-8") for name in FILES)


def test_policies_choose_pods_that_there_are() -> None:
    labels = [{"ray.io/is-ray-node": "yes"}]  # the operator gives its pods this one
    labels += [
        document["spec"]["template"]["metadata"]["labels"]
        for document in _all()
        if document["kind"] in ("Deployment", "StatefulSet")
    ]
    policies = [document["spec"] for document in _all() if document["kind"] == "NetworkPolicy"]
    assert len(policies) == 4
    for policy in policies:
        chosen = policy["podSelector"]["matchLabels"]
        assert any(chosen.items() <= found.items() for found in labels)
        assert policy["ingress"]  # an empty list would let nobody in
        assert all("from" in rule for rule in policy["ingress"])  # none lets everybody in


# --- Prometheus and Grafana

METRICS = {
    "tubelet_videos_total",
    "tubelet_clips_total",
    "tubelet_bytes_total",
    "tubelet_errors_total",
    "tubelet_queue_length",
    "tubelet_decode_utilisation",
    "tubelet_gpu_utilisation",
}


def test_dashboard_asks_for_all_of_our_figures() -> None:
    queries = dashboard_queries()
    assert len(queries) >= len(METRICS)
    # Ray puts its name before each.
    assert set(re.findall(r"ray_(tubelet_\w+)", " ".join(queries.values()))) == METRICS
    assert not [query for query in queries.values() if "$" in query]


def test_prometheus_takes_its_configuration_and_the_dashboards_queries(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("there is no promtool: apt-get install prometheus")
    config = tmp_path / "prometheus.yml"
    scraped = yaml.safe_load(_of_kind("base/prometheus.yaml", "ConfigMap")["data"]["prometheus.yml"])
    for job in scraped["scrape_configs"]:  # Debian's build knows no Kubernetes
        assert job.pop("kubernetes_sd_configs") == [{"role": "pod", "namespaces": {"own_namespace": True}}]
    config.write_text(yaml.safe_dump(scraped), "utf-8")
    rules = tmp_path / "rules.yml"
    recorded = [
        {"record": f"query:{number}", "expr": query}
        for number, query in enumerate(dashboard_queries().values())
    ]
    rules.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": recorded}]}), "utf-8")
    for kind, file in (("config", config), ("rules", rules)):
        done = subprocess.run(
            [promtool, "check", kind, file], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
