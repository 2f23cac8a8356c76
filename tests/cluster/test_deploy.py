"""What deploys rqmr: the files are what Docker, Kubernetes and systemd read, and their commands work together.

There is no Docker here: the commands of the compose file and of the manifests run as they are written, on this machine.
"""

from __future__ import annotations

import configparser
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import redis as redis_py
import rq
import yaml
from harness import ROOT, wait_until
from test_tls import TlsServer

from rqmr.server import find_server
from rqmr.sessions import end_sessions

Rqmr = Callable[..., subprocess.CompletedProcess[str]]

KUBERNETES = ROOT / "deploy" / "kubernetes"
OLDEST, NEWEST = "1.29", "1.36"
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES = COMPOSE["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def manifests() -> list[dict[str, Any]]:
    """All objects, but those that aren't Kubernetes' own."""
    texts = [path.read_text() for path in sorted(KUBERNETES.glob("*.yaml"))]
    return [each for text in texts for each in yaml.safe_load_all(text) if _is_its_own(each)]


def _is_its_own(each: dict[str, Any]) -> bool:
    return "keda.sh" not in each["apiVersion"] and "kustomize" not in each["apiVersion"]


def manifest(kind: str) -> dict[str, Any]:
    (found,) = [each for each in manifests() if each["kind"] == kind]
    return found


def pod(each: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = each["spec"]["template"]["spec"]
    return spec


PODS = [each for each in manifests() if "template" in each["spec"]]


# --- the Dockerfile -----------------------------------------------------------------------------------------------


def test_the_dockerfile_copies_what_the_package_is_made_of_and_runs_as_nobody_special() -> None:
    copied = {
        word for line in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE) for word in line.split()
    }
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == kept
    assert all((ROOT / each).exists() for each in copied)
    assert copied >= {"pyproject.toml", "README.md", "LICENSE", "rqmr", "jobs"}, "what the wheel is built from"
    assert re.search(r"^USER [1-9]\d+$", DOCKERFILE, re.MULTILINE)
    assert set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)) == {"python:3.13-slim"}


# --- Compose ------------------------------------------------------------------------------------------------------


def test_the_compose_file_is_one() -> None:
    compose_spec = pytest.importorskip("compose_spec", reason="compose-spec isn't built for this platform")
    read = compose_spec.PyCompose.from_yaml(yaml.safe_dump(COMPOSE))  # which has merged the common parts
    assert set(SERVICES) == set(read.to_dict()["services"]) == {"setup", "valkey", "worker", "demo"}


def test_its_services_wait_for_each_other_are_started_again_and_can_be_scaled() -> None:
    conditions = {name: each.get("depends_on", {}) for name, each in SERVICES.items()}
    assert conditions["valkey"] == {"setup": {"condition": "service_completed_successfully"}}
    assert conditions["worker"] == {"valkey": {"condition": "service_healthy"}}
    assert [name for name, each in SERVICES.items() if each["restart"] == "always"] == ["valkey", "worker"]
    assert not {"container_name", "ports"} & set(SERVICES["worker"]), "which would stand against --scale"
    assert "--maxmemory-policy noeviction" in SERVICES["valkey"]["command"]
    mounted = [volume.partition(":")[0] for each in SERVICES.values() for volume in each["volumes"]]
    assert {each for each in mounted if "/" not in each} == set(COMPOSE["volumes"])
    assert (ROOT / next(each for each in mounted if "/" in each)).is_file()
    assert SERVICES["worker"]["volumes"] == ["client:/run/rqmr:ro"], "the server's key is the server's alone"


@contextmanager
def started(command: str | list[str], cwd: Path, path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A service's command, with programs of `path` before others."""
    words = shlex.split(command) if isinstance(command, str) else command
    clean = {name: value for name, value in os.environ.items() if not name.endswith("REDIS_URL")}
    environment = clean | {"PATH": f"{path}{os.pathsep}{os.environ['PATH']}"}
    with (cwd / "log").open("ab") as log:
        process = subprocess.Popen(
            words, cwd=cwd, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=environment
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        end_sessions({process.pid})


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """What the containers have on their PATH."""
    if not shutil.which("openssl"):
        assert not os.environ.get("CI"), "there is no openssl"
        pytest.skip("there is no openssl")
    directory = tmp_path / "bin"
    directory.mkdir()
    (directory / "rqmr").write_text(f'#!/bin/sh\nexec {sys.executable} -m rqmr "$@"\n')
    (directory / "rqmr").chmod(0o755)
    (directory / "valkey-server").symlink_to(find_server())
    return directory


def argvs(pids: set[int]) -> str:
    return " ".join(Path(f"/proc/{pid}/cmdline").read_text() for pid in pids if Path(f"/proc/{pid}").exists())


def test_the_composed_services_work_together_over_tls_with_a_password_that_nobody_chose(
    programs: Path, rqmr: Rqmr, tmp_path: Path
) -> None:
    run, socket = tmp_path / "run", tmp_path / "r.sock"
    setup = [str(ROOT / "deploy" / "compose" / "setup.sh"), str(run), "localhost"]
    subprocess.run(setup, check=True, capture_output=True)
    url = (run / "client" / "url").read_text()
    subprocess.run(setup, check=True, capture_output=True)
    assert (run / "client" / "url").read_text() == url, "made once"
    password = url.partition("://:")[2].partition("@")[0]
    assert len(password) == 48
    for name in ("ca.crt", "server.crt", "server.key", "password.conf"):
        (run / name).symlink_to(run / "server" / name)

    def here(command: str) -> str:
        return command.replace("/run/rqmr", str(run)).replace("$$", "$")

    # The bundled server is built without TLS, so the tests' own stands before it, with the certificate.
    without_tls = re.sub(r"--tls-\S+ \S+ ?", "", here(SERVICES["valkey"]["command"]))
    with started(f"{without_tls} --unixsocket {socket} --dir {tmp_path}", tmp_path, programs):
        wait_until(socket.exists, timeout=10, what="the server is there")
        (run / "server.pem").symlink_to(run / "server.crt")
        with (
            closing(TlsServer(run, str(socket))) as tls,
            closing(redis_py.Redis(unix_socket_path=str(socket))) as plain,
        ):
            with pytest.raises(redis_py.AuthenticationError):
                plain.ping()
            (run / "url").write_text(here(url).replace(":6379", f":{tls.port}"))
            client = redis_py.Redis(unix_socket_path=str(socket), password=password)
            with closing(client), started(here(SERVICES["worker"]["command"]), tmp_path, programs) as worker:
                wait_until(lambda: client.scard("rq:workers:rqmr"), timeout=20, what="the worker listens")
                demo = [here(word) for word in SERVICES["demo"]["entrypoint"]]
                done = subprocess.run(
                    [*demo, *shlex.split(SERVICES["demo"]["command"])], cwd=ROOT, capture_output=True, text=True,
                    env=os.environ | {"PATH": f"{programs}:{os.environ['PATH']}"}, timeout=60, check=False,
                )  # fmt: skip
                assert password not in argvs({worker.pid})
                os.kill(worker.pid, signal.SIGTERM)
                assert worker.wait(timeout=10) is not None, "well within its grace period"
    assert done.returncode == 0, done.stderr
    assert done.stdout == rqmr("run", "wordcount", ROOT / "input", "--inline", "-o", "-").stdout
    assert password not in done.stderr + (tmp_path / "log").read_text()


# --- Kubernetes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("each", manifests(), ids=lambda each: f"{each['kind']}-{each['metadata']['name']}")
@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_a_manifest_is_what_kubernetes_reads(each: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(each, version, strict=True)


@pytest.mark.parametrize("each", PODS, ids=lambda each: each["metadata"]["name"])
def test_a_pod_has_limits_no_rights_and_no_password_in_its_manifest(each: dict[str, Any]) -> None:
    assert pod(each)["securityContext"]["runAsNonRoot"] is True
    assert pod(each)["automountServiceAccountToken"] is False
    for container in pod(each)["containers"]:
        security = container["securityContext"]
        assert security["readOnlyRootFilesystem"]
        assert not security["allowPrivilegeEscalation"]
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert {"cpu", "memory"} <= set(container["resources"]["requests"])
        assert "memory" in container["resources"]["limits"]
        secret = {one["name"]: one for one in container["env"]}["PASSWORD"]["valueFrom"]["secretKeyRef"]
        assert secret == {"name": "rqmr", "key": "PASSWORD"}
        volumes = [*pod(each).get("volumes", []), *each["spec"].get("volumeClaimTemplates", [])]
        names = {one.get("name") or one["metadata"]["name"] for one in volumes}
        assert {one["name"] for one in container["volumeMounts"]} == names


def test_the_manifests_name_each_other() -> None:
    kustomization = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
    assert all((KUBERNETES / each).is_file() for each in kustomization["resources"])
    (image,) = kustomization["images"]
    assert f"{image['newName']}:{image['newTag']}" == pod(manifest("Job"))["containers"][0]["image"]
    assert kustomization["secretGenerator"][0]["name"] == "rqmr"
    assert "/deploy/kubernetes/secret.env" in (ROOT / ".gitignore").read_text()
    server, service, policy = manifest("StatefulSet"), manifest("Service"), manifest("NetworkPolicy")
    labels = server["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == policy["spec"]["podSelector"]["matchLabels"] == labels
    assert service["metadata"]["name"] == server["spec"]["serviceName"] == "valkey"
    (reaches,) = [one["podSelector"] for one in policy["spec"]["ingress"][0]["from"] if "podSelector" in one]
    for kind in ("Deployment", "Job"):
        labels = manifest(kind)["spec"]["template"]["metadata"]["labels"]
        assert reaches["matchLabels"].items() <= labels.items()
        env = {one["name"]: one.get("value") for one in pod(manifest(kind))["containers"][0]["env"]}
        assert env["RQMR_REDIS_URL"] == "redis://:$(PASSWORD)@valkey:6379/0"


def test_workers_have_time_to_give_their_tasks_back_and_drivers_are_not_run_twice() -> None:
    assert pod(manifest("Deployment"))["terminationGracePeriodSeconds"] >= 30
    assert manifest("Job")["spec"]["backoffLimit"] == 0
    assert pod(manifest("Job"))["restartPolicy"] == "Never"


def test_the_scaler_looks_at_what_waits_and_what_is_busy(redis: Any, workers: Any) -> None:
    """KEDA's own resources have no schema here: their fields are looked at, and their keys are RQ's."""
    authentication, scaled = yaml.safe_load_all((KUBERNETES / "scaling.yaml").read_text())
    assert scaled["spec"]["scaleTargetRef"] == {"name": manifest("Deployment")["metadata"]["name"]}
    triggers = {each["name"]: each for each in scaled["spec"]["triggers"]}
    formula = scaled["spec"]["advanced"]["scalingModifiers"]["formula"]
    assert set(re.findall(r"[a-z]+", formula)) == set(triggers)
    for each in triggers.values():
        assert each["authenticationRef"]["name"] == authentication["metadata"]["name"]
        assert each["type"] == "redis"
    workers.start(1)
    for _ in range(3):
        rq.Queue("rqmr", connection=redis).enqueue("time.sleep", 30, result_ttl=0)
    names = {name: each["metadata"]["listName"] for name, each in triggers.items()}
    wait_until(lambda: redis.zcard(names["busy"]) == 1, timeout=5, what="one is at work")
    assert redis.llen(names["waiting"]) == 2


def test_the_servers_command_takes_its_password_from_standard_input(programs: Path, tmp_path: Path) -> None:
    (container,) = pod(manifest("StatefulSet"))["containers"]
    socket = tmp_path / "r.sock"
    (script,) = container["args"]
    script = script.replace("--dir /data", f"--dir {tmp_path} --port 0 --unixsocket {socket}")
    command = ["env", "PASSWORD=a-secret-word", *container["command"], script]
    with started(command, tmp_path, programs) as server:
        wait_until(socket.exists, timeout=10, what="the server is there")
        with closing(redis_py.Redis(unix_socket_path=str(socket), password="a-secret-word")) as client:
            assert client.ping()
            assert client.info("persistence")["aof_enabled"] == 1
        assert "a-secret-word" not in argvs({server.pid})


# --- systemd ------------------------------------------------------------------------------------------------------


def test_the_unit_keeps_workers_running_and_lets_them_leave(tmp_path: Path) -> None:
    text = (ROOT / "deploy" / "systemd" / "rqmr-worker.service").read_text()
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(text)
    assert (unit["Service"]["Restart"], unit["Unit"]["StartLimitIntervalSec"]) == ("always", "0")
    assert unit["Service"]["KillMode"] == "mixed"
    assert unit["Service"]["EnvironmentFile"]
    assert "REDIS_URL" not in "".join(unit["Service"])
    if not shutil.which("systemd-analyze"):
        return
    path = tmp_path / "rqmr-worker.service"
    path.write_text(text.replace("/srv/rqmr/venv/bin/rqmr ", f"{sys.executable} ").replace("User=rqmr", "User=root"))
    done = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True, check=False)
    assert path.name not in done.stderr, done.stderr
