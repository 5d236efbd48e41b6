"""Helm and Kubernetes' schemas, as a program of `.venv-deploy`: from JSON to JSON.

    render     {chart, values, name, namespace} -> {manifests} or {error}
    lint       {chart, values} -> the report of Helm
    validate   {manifests, version, schemas} -> a list of problems

A kind without a schema is a problem. `schemas` has those that Kubernetes itself does not define.
"""

import json
import sys
from collections.abc import Iterator
from typing import Any

import helm_python
import jsonschema
import kubernetes_validate
import yaml


def render(chart: str, values: dict[str, Any], name: str, namespace: str) -> dict[str, Any]:
    """The manifests by the paths of their templates, or why there are none."""
    try:
        with helm_python.Chart.load(chart) as loaded:
            loaded.validate_schema(values)
            rendered = loaded.render(values, name=name, namespace=namespace, is_install=True)
    except helm_python.HelmError as error:
        return {"error": str(error)}
    notes = next(text for path, text in rendered.items() if path.endswith("NOTES.txt"))
    documents = [
        document
        for path, text in rendered.items()
        if path.endswith(".yaml")
        for document in yaml.safe_load_all(text)
        if document
    ]
    return {"manifests": documents, "notes": notes}


def lint(chart: str, values: dict[str, Any]) -> dict[str, Any]:
    """Helm's report."""
    report: dict[str, Any] = helm_python.lint(chart, values, strict=True)
    return report


def validate(
    manifests: list[dict[str, Any]], version: str, schemas: dict[str, dict[str, Any]]
) -> list[str]:
    """Problems, one line each."""
    return [problem for each in manifests for problem in _problems(each, version, schemas)]


def _problems(
    manifest: dict[str, Any], version: str, schemas: dict[str, dict[str, Any]]
) -> Iterator[str]:
    kind = manifest["kind"]
    where = f"{kind} {manifest['metadata'].get('name')}"
    try:
        if kind in schemas:
            jsonschema.validate(manifest, schemas[kind])
        else:
            kubernetes_validate.validate(manifest, version, strict=True)
    except kubernetes_validate.SchemaNotFoundError as error:
        yield f"{where}: {error.message}"
    except jsonschema.ValidationError as error:  # that of kubernetes_validate is one
        yield f"{where}: {'.'.join(map(str, error.path))}: {error.message}"
    if kind == "LeaderWorkerSet":
        for template in ("leaderTemplate", "workerTemplate"):
            pod = {"apiVersion": "v1", "kind": "Pod"}
            pod |= manifest["spec"]["leaderWorkerTemplate"][template]
            pod["metadata"] = {"name": template} | pod["metadata"]
            yield from _problems(pod, version, schemas)


if __name__ == "__main__":
    commands = {"render": render, "lint": lint, "validate": validate}
    json.dump(commands[sys.argv[1]](**json.load(sys.stdin)), sys.stdout)
