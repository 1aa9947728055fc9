"""The descriptions in `launch/`: documents for Kubernetes, the image, and what they name of this project."""

import json
import math
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parent.parent
LAUNCH = ROOT / "launch"


def pods(name: str) -> tuple[list[dict], dict, dict]:
    """The documents of a file, its job's spec, and that job's container."""
    documents = list(yaml.safe_load_all((LAUNCH / name).read_text()))
    job = documents[-1]["spec"]
    job = job["replicatedJobs"][0]["template"]["spec"] if documents[-1]["kind"] == "JobSet" else job
    return documents, job, job["template"]["spec"]["containers"][0]


@pytest.mark.parametrize(("name", "further"), [("gpu_job.yaml", 3), ("tpu_jobset.yaml", 1)])
def test_kubernetes_runs_the_line(name, further):
    _, job, container = pods(name)
    assert container["command"] == ["python", "-m", "ilr_jax.main"]
    assert container["args"][:2] == ["--config=$(CONFIG)", "--workdir=$(WORKDIR)"] and len(container["args"]) == 2 + further
    known = {variable["name"] for variable in container["env"]} | {"JOB_COMPLETION_INDEX"}
    assert all(isinstance(variable["value"], str) for variable in container["env"] if "valueFrom" not in variable)
    assert set(re.findall(r"\$\((\w+)\)", " ".join(container["args"]))) <= known
    assert job["completionMode"] == "Indexed" and job["completions"] == job["parallelism"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in job["template"]["spec"]["volumes"]}


def test_kubernetes_takes_the_documents():
    job_of_set = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "one"},
        "spec": pods("tpu_jobset.yaml")[1],
    }  # no schema of sets
    for document in (*pods("gpu_job.yaml")[0], job_of_set):
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
    job_of_set["spec"]["completion"] = 1
    with pytest.raises(kubernetes_validate.ValidationError, match="'completion' was unexpected"):
        kubernetes_validate.validate(job_of_set, kubernetes_validate.latest_version(), strict=True)


def test_processes_on_kubernetes_find_each_other():
    (service, whole), job, container = pods("gpu_job.yaml")
    name = whole["metadata"]["name"]
    assert job["template"]["spec"]["subdomain"] == service["metadata"]["name"] and service["spec"]["selector"] == {"job-name": name}
    address = f"{name}-0.{service['metadata']['name']}:{container['ports'][0]['containerPort']}"
    assert f"--coordinator_address={address}" in container["args"]
    assert {"name": "PROCESSES", "value": str(job["completions"])} in container["env"]
    _, job, container = pods("tpu_jobset.yaml")
    chips = math.prod(map(int, job["template"]["spec"]["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")))
    assert chips == job["completions"] * container["resources"]["limits"]["google.com/tpu"] and "--distributed" in container["args"]


def test_the_image_has_no_fault_that_a_linter_finds():
    done = subprocess.run([Path(sys.executable).with_name("hadolint"), LAUNCH / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_image_is_built_from_what_there_is():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = (LAUNCH / "Dockerfile").read_text()
    copied = {source for line in re.findall(r"^COPY (.+) \S+$", text, re.M) for source in line.split()}
    assert {"ilr_jax", "configs", "pyproject.toml", project["readme"]} <= copied and all((ROOT / source).exists() for source in copied)
    assert json.loads(re.findall(r"^ENTRYPOINT (.+)$", text, re.M)[0]) == ["python", "-m", "ilr_jax.main"]


def test_extras_that_are_named_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"].keys()
    text = "".join(path.read_text() for path in LAUNCH.iterdir()) + (ROOT / "docs" / "launch.md").read_text()
    named = (
        set(re.findall(r"EXTRA(?:=|: )(\w+)", text))
        | set(re.findall(r"'\.\[(\w+)\]'", text))
        | set(re.findall(r"CUDA=\$\{CUDA:-(\w+)\}", text))
    )
    assert {"tpu", "cuda13"} <= named <= extras


def test_the_document_names_every_file_and_no_other():
    text = (ROOT / "docs" / "launch.md").read_text()
    assert set(re.findall(r"launch/([\w.]+\w)", text)) == {path.name for path in LAUNCH.iterdir()} - {"common.sh"}
