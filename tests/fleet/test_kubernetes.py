"""The Helm chart: what it must have, for every example, and against Kubernetes' own schemas."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from fleet.command import main
from fleet.description import Fleet
from fleet.kubernetes import helm_values
from fleet.reading import read_fleet
from fleet.table import InvalidFleet
from stage_server.relay.settings import read_relay_settings
from stage_server.settings import read_settings
from wire.types import REQUIRED, Role

yaml = pytest.importorskip("yaml")
ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm" / "disagfusion"
PLAIN = ROOT / "deploy" / "kubernetes" / "disagfusion.yaml"
BY_HAND = "scaling.enabled=true,pools.small.pool="
EXAMPLES = sorted((ROOT / "examples" / "fleet").glob("*.toml"))
HELM = shutil.which("helm") or shutil.which("helm", path=str(ROOT / ".helm" / "helm"))
KUBERNETES = "1.35"
Manifest = Mapping[str, Any]

needs_helm = pytest.mark.skipif(HELM is None, reason="helm is not installed (.ci/install-helm)")


def read(text: str) -> list[Manifest]:
    return [found for found in yaml.safe_load_all(text) if found]


def helm(*words: str | Path) -> str:
    assert HELM is not None
    done = subprocess.run([HELM, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rendered(path: Path, folder: Path, *more: str) -> list[Manifest]:
    values = folder / "values.json"
    values.write_text(json.dumps(helm_values(read_fleet(path))))
    return read(helm("template", "it", CHART, "--values", values, *more))


def of_kind(manifests: Sequence[Manifest], kind: str) -> list[Manifest]:
    return [each for each in manifests if each["kind"] == kind]


def component(manifest: Manifest) -> str:
    return str(manifest["metadata"]["labels"]["app.kubernetes.io/component"])


def check(manifests: Sequence[Manifest]) -> None:
    """What every fleet on Kubernetes must have."""
    workloads = of_kind(manifests, "Deployment")
    budgets = {each["metadata"]["name"]: each["spec"] for each in of_kind(manifests, "PodDisruptionBudget")}
    for workload in workloads:
        pod = workload["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        security = container["securityContext"]
        assert security == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}  # noqa: S108 # in the pod
        assert "readinessProbe" in container
        if component(workload) == "gateway":
            assert {"livenessProbe", "startupProbe"} <= container.keys()
            assert workload["spec"]["strategy"] == {"type": "Recreate"}
        elif component(workload) == "relay":
            check_relay(workload, pod, container)
        else:
            check_servers(workload, pod, container)
            labels = workload["spec"]["selector"]["matchLabels"]
            assert budgets[workload["metadata"]["name"]]["selector"]["matchLabels"] == labels
    gateways, stages, *relays = of_kind(manifests, "NetworkPolicy")
    assert len(relays) == any(component(each) == "relay" for each in workloads)
    assert [port["port"] for port in gateways["spec"]["ingress"][1]["ports"]] == ["control", "data"]
    assert all("podSelector" in peer for peer in stages["spec"]["ingress"][0]["from"])


def check_relay(workload: Manifest, pod: Manifest, container: Manifest) -> None:
    """One process, which keeps strangers away by its key."""
    settings = read_relay_settings([*container["args"], "--relay-key", "swordfish"])
    assert (settings.bind, settings.insecure) == ("tcp://0.0.0.0:5700", False)
    assert container["command"] == ["python", "-m", "stage_server", "relay"]
    assert {each["name"] for each in container["env"]} == {"DISAGFUSION_STAGE_RELAY_KEY"}
    assert pod["terminationGracePeriodSeconds"] > settings.drain_timeout + 10
    assert (workload["spec"]["replicas"], workload["spec"]["strategy"]) == (1, {"type": "Recreate"})


def check_servers(workload: Manifest, pod: Manifest, container: Manifest) -> None:
    given = [arg.replace("$(POD_IP)", "10.0.0.1") for arg in container["args"]]
    if any(each["name"] == "DISAGFUSION_STAGE_CURVE_SECRET_KEY" for each in container["env"]):
        given += [f"--curve-{of}-key={'x' * 40}" for of in ("public", "secret", "gateway")]
    settings = read_settings(given)
    assert pod["terminationGracePeriodSeconds"] > settings.drain_timeout + 10
    assert container["readinessProbe"]["exec"]["command"] == ["test", "-e", str(settings.ready_file)]
    assert "affinity" in pod or "topologySpreadConstraints" in pod
    assert {"/cache", "/home/disagfusion"} <= {mount["mountPath"] for mount in container["volumeMounts"]}
    assert workload["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}


def test_the_plain_manifests_have_what_they_must() -> None:
    manifests = read(PLAIN.read_text())
    check(manifests)
    stages = [each for each in of_kind(manifests, "Deployment") if component(each) == "stage"]
    gpus = [each["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"] for each in stages]
    assert gpus == [{"nvidia.com/gpu": 1}] * 3


def test_servers_that_begin_differently_are_different_workloads() -> None:
    values: Any = helm_values(read_fleet(ROOT / "examples" / "fleet" / "one-machine.toml"))
    pools = {name: pool for name, pool in values["pools"].items() if pool is not None}
    assert {name: (pool["min"], pool["max"]) for name, pool in pools.items()} == {
        "cpu-encoder-decoder": (1, 2),
        "cpu-dit": (1, 2),
    }
    dit = read_settings([*pools["cpu-dit"]["args"], "--gateway", "tcp://g:1"])
    assert (dit.role, dit.may_take, dit.threads) == ((Role.DIT,), REQUIRED, 1)


def test_keys_are_named_and_never_held(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("STUDIO_ADMIN_KEY", "swordfish")
    assert main(["render", "--kubernetes", str(ROOT / "examples" / "fleet" / "two-gpus.toml")]) == 0
    printed = capsys.readouterr().out
    keys = json.loads(printed)["keys"]
    assert keys == {
        "secret": "studio-keys",
        "gateway": ["admin_key", "api_keys"],
        "hubToken": True,
        "relay": False,
        "curve": False,
    }
    assert "swordfish" not in printed


def test_shares_of_gpus_are_refused() -> None:
    pool = {"models": ["a"], "resources": {"num_gpus": 0.5}}
    fleet = Fleet.model_validate({"models": {"a": {"source": "x"}}, "pools": {"p": pool}})
    with pytest.raises(InvalidFleet, match=r"pools\.p\.resources\.num_gpus: Kubernetes hands out whole GPUs, not 0\.5"):
        helm_values(fleet)


@pytest.mark.services
@needs_helm
def test_the_chart_passes_lint() -> None:
    helm("lint", "--strict", CHART)


@pytest.mark.services
@needs_helm
def test_the_plain_manifests_are_what_the_chart_renders() -> None:
    again = "helm template disagfusion deploy/helm/disagfusion > deploy/kubernetes/disagfusion.yaml"
    assert read(helm("template", "disagfusion", CHART)) == read(PLAIN.read_text()), again


@pytest.mark.services
@needs_helm
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_one_that_kubernetes_takes(path: Path, tmp_path: Path) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    manifests = rendered(path, tmp_path, "--set", "scaling.enabled=true,weights.size=100Gi")
    check(manifests)
    for manifest in manifests:
        if manifest["kind"] != "ScaledObject":  # KEDA's own
            kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    fleet = read_fleet(path)
    claims = {each["metadata"]["name"] for each in of_kind(manifests, "PersistentVolumeClaim")}
    assert claims == {"it-weights", *(f"it-{name}-state" for name in fleet.gateways)}


def arguments(deployment: Any) -> list[str]:
    return list(deployment["spec"]["template"]["spec"]["containers"][0]["args"])


def variables(manifests: list[Any]) -> set[str]:
    """Of gateways."""
    gateways = [each for each in of_kind(manifests, "Deployment") if component(each) == "gateway"]
    return {
        each["name"] for gateway in gateways for each in gateway["spec"]["template"]["spec"]["containers"][0]["env"]
    }


@pytest.mark.services
@needs_helm
def test_pools_that_are_scaled_by_hand_go_by_what_waits(tmp_path: Path) -> None:
    manifests = rendered(ROOT / "examples" / "fleet" / "mixed-cluster.toml", tmp_path, "--set", BY_HAND)
    (query,) = {each["spec"]["triggers"][0]["metadata"]["query"] for each in of_kind(manifests, "ScaledObject")} - {
        f"sum(disagfusion_pool_servers_wanted{{pool='{name}'}}) * 1" for name in ("large", "spot")
    }
    assert "model='FLUX.1-dev',stage=~'encoder|decoder'" in query
    check_query(query, tmp_path)


def check_query(query: str, folder: Path) -> None:
    """Where Prometheus is installed."""
    if promtool := shutil.which("promtool"):
        rule = {"groups": [{"name": "pools", "rules": [{"record": "wanted", "expr": query}]}]}
        (folder / "rules.yml").write_text(yaml.safe_dump(rule))
        subprocess.run([promtool, "check", "rules", str(folder / "rules.yml")], check=True, capture_output=True)


@pytest.mark.services
@needs_helm
def test_pools_with_room_are_scaled_between_their_bounds(tmp_path: Path) -> None:
    path = ROOT / "examples" / "fleet" / "mixed-cluster.toml"
    manifests = rendered(path, tmp_path, "--set", "scaling.enabled=true")
    scaled = {each["metadata"]["name"]: each["spec"] for each in of_kind(manifests, "ScaledObject")}
    assert {name: (each["minReplicaCount"], each["maxReplicaCount"]) for name, each in scaled.items()} == {
        "it-large": (2, 8),
        "it-small": (2, 4),
        "it-spot": (0, 8),
    }
    query = scaled["it-small"]["triggers"][0]["metadata"]["query"]
    assert query == "sum(disagfusion_pool_servers_wanted{pool='small'}) * 1"
    assert all(
        "replicas" not in each["spec"] for each in of_kind(manifests, "Deployment") if component(each) == "stage"
    )
    check_query(query, tmp_path)
    stages = [each for each in of_kind(manifests, "Deployment") if component(each) == "stage"]
    assert ["--pool=large" in arguments(each) for each in stages] == [
        each["metadata"]["name"] == "it-large" for each in stages
    ]
    assert "DISAGFUSION_POOLS" in variables(manifests)
    unscaled = rendered(path, tmp_path)
    assert "DISAGFUSION_POOLS" not in variables(unscaled), "nobody would start what it waits for"
    assert not of_kind(unscaled, "ScaledObject")
    assert {each["metadata"]["name"]: each["spec"]["replicas"] for each in of_kind(unscaled, "Deployment")} == {
        "it-main": 1,
        "it-large": 2,
        "it-small": 2,
        "it-spot": 0,
    }


@pytest.mark.services
@needs_helm
@pytest.mark.parametrize(
    ("more", "relay"),
    [((), "tcp://it-front:5700"), (("--set", "relays.front.address=a.example:5"), "tcp://a.example:5")],
)
def test_servers_join_the_relay_where_everybody_reaches_it(more: tuple[str, ...], relay: str, tmp_path: Path) -> None:
    manifests = rendered(ROOT / "examples" / "fleet" / "relay.toml", tmp_path, *more)
    stages = [each for each in of_kind(manifests, "Deployment") if component(each) == "stage"]
    for each in stages:
        assert f"--relay={relay}" in arguments(each)
        (container,) = each["spec"]["template"]["spec"]["containers"]
        assert "DISAGFUSION_STAGE_RELAY_KEY" in {variable["name"] for variable in container["env"]}
    (policy,) = [each for each in of_kind(manifests, "NetworkPolicy") if each["metadata"]["name"] == "it-relays"]
    assert policy["spec"]["ingress"] == [{"ports": [{"port": "relay"}]}]


@pytest.mark.services
@needs_helm
def test_encrypted_fleets_have_their_pairs_from_the_secret_and_allow_nothing_else(tmp_path: Path) -> None:
    manifests = rendered(ROOT / "examples" / "fleet" / "relay.toml", tmp_path)
    stages = [each for each in of_kind(manifests, "Deployment") if component(each) == "stage"]
    assert {
        "DISAGFUSION_CURVE_PUBLIC_KEY",
        "DISAGFUSION_CURVE_SECRET_KEY",
        "DISAGFUSION_CURVE_ALLOWED_KEYS",
    } <= variables(manifests)
    assert "DISAGFUSION_ALLOW_PLAINTEXT" not in variables(manifests)
    for each in stages:
        assert "--insecure" not in arguments(each)
        (container,) = each["spec"]["template"]["spec"]["containers"]
        keys = {each["name"]: each["valueFrom"]["secretKeyRef"] for each in container["env"] if "CURVE" in each["name"]}
        assert keys == {
            f"DISAGFUSION_STAGE_CURVE_{name}": {"name": "office-keys", "key": key}
            for name, key in {
                "PUBLIC_KEY": "stage_curve_public_key",
                "SECRET_KEY": "stage_curve_secret_key",
                "GATEWAY_KEY": "curve_public_key",
            }.items()
        }
