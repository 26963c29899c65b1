"""What is wrong with a Kubernetes document: Kubernetes' schemas, and KubeRay's definitions."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

from support import SHARED

KUBERNETES = "1.37"

Document = dict[str, Any]


def faults(document: Document) -> list[str]:
    """What a cluster would refuse, and what it would drop without a word."""
    known = document.get("apiVersion") == "ray.io/v1" and document["kind"] in _FIELDS
    return own_faults(document) + (list(crd_faults(document)) if known else [])


def own_faults(document: Document) -> list[str]:
    """Without KubeRay's definitions, which take seconds."""
    if document.get("apiVersion") == "ray.io/v1":
        return list(_ray_faults(document))
    try:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
        return [str(error).splitlines()[0]]
    return []


# The fields of KubeRay's resources that are used here. Its own definitions lie beside some checkouts only.
_CLUSTER_FIELDS = {
    "rayVersion": str,
    "authOptions": {"mode": str},
    "enableInTreeAutoscaling": bool,
    "autoscalerOptions": {"version": str, "upscalingMode": str, "idleTimeoutSeconds": int},
    "headGroupSpec": {"rayStartParams": dict, "template": "pod"},
    "workerGroupSpecs": [
        {
            "groupName": str,
            "replicas": int,
            "minReplicas": int,
            "maxReplicas": int,
            "rayStartParams": dict,
            "template": "pod",
        }
    ],
}
_JOB_FIELDS = {
    "entrypoint": str,
    "submissionMode": str,
    "backoffLimit": int,
    "activeDeadlineSeconds": int,
    "shutdownAfterJobFinishes": bool,
    "ttlSecondsAfterFinished": int,
    "rayClusterSpec": _CLUSTER_FIELDS,
}
_FIELDS: dict[str, Any] = {
    "RayCluster": _CLUSTER_FIELDS,
    "RayJob": _JOB_FIELDS,
    "RayCronJob": {"schedule": str, "timeZone": str, "jobTemplate": _JOB_FIELDS},
}


def _ray_faults(document: Document) -> Iterator[str]:
    if set(document) != {"apiVersion", "kind", "metadata", "spec"}:
        yield f"fields {sorted(document)}"
    elif document["kind"] not in _FIELDS:
        yield f"kind {document['kind']}"
    else:
        yield from own_faults({"apiVersion": "v1", "kind": "PodTemplate", "metadata": document["metadata"]})
        yield from _misfits(document["spec"], _FIELDS[document["kind"]], "spec")


def _misfits(value: Any, wanted: Any, path: str) -> Iterator[str]:
    if wanted == "pod":
        metadata = {"name": "of-a-group"}
        for fault in own_faults(
            {"apiVersion": "v1", "kind": "PodTemplate", "metadata": metadata, "template": value}
        ):
            yield f"{path}: {fault}"
    elif isinstance(wanted, list):
        for number, item in enumerate(value):
            yield from _misfits(item, wanted[0], f"{path}[{number}]")
    elif isinstance(wanted, dict):
        yield from (f"{path}.{name} is unknown" for name in value.keys() - wanted.keys())
        for name in value.keys() & wanted.keys():
            yield from _misfits(value[name], wanted[name], f"{path}.{name}")
    elif not isinstance(value, wanted):
        yield f"{path} is no {wanted.__name__}"


@functools.cache
def _crd(kind: str) -> Document | None:
    file = SHARED / "schemas" / f"ray.io_{kind.lower()}s.yaml"
    if not file.is_file():
        return None
    document = yaml.load(file.read_bytes(), Loader=yaml.CSafeLoader)  # 1 MB: minutes without the C loader
    version = next(v for v in document["spec"]["versions"] if v["name"] == "v1")
    schema: Document = version["schema"]["openAPIV3Schema"]
    return schema


def crd_faults(document: Document) -> Iterator[str]:
    """By KubeRay's own definitions, where they lie beside the checkout."""
    schema = _crd(document["kind"])
    if schema is not None:
        yield from (error.message for error in jsonschema.Draft7Validator(schema).iter_errors(document))
        body = {"spec": document.get("spec", {})}
        yield from _unknown(body, {"properties": {"spec": schema["properties"]["spec"]}})


def _unknown(value: Any, schema: Document, path: str = "") -> Iterator[str]:
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
