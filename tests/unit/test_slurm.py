"""ENGINE=slurm without Slurm: the options and the script of a job, what Slurm says, and when a stage is tried again."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantyard.batch import JobStatus
from quantyard.batch.retries import StageTries
from quantyard.batch.slurm import _parse_sinfo, _status_of_row
from quantyard.batch.slurm_commands import _reason_of_slurm, _slurm_hint, run_slurm_command
from quantyard.batch.slurm_job import (
    SlurmPlace,
    parse_slurm_comment,
    sbatch_options,
    slurm_job_comment,
    slurm_job_name,
    slurm_job_script,
)
from quantyard.cli.cluster_request import RESERVED_SBATCH_OPTIONS, typed_cluster_request
from quantyard.cli.settings import SETTINGS
from quantyard.errors import BadRequest, EngineError
from quantyard.plan.stages import STAGES
from quantyard.protocol.base import ExitCode, RanOn, StageError, StageResult
from quantyard.protocol.node_spec import NodeEnd, NodeResources, NodeSpec
from quantyard.protocol.stage_requests import parse_stage_request, stage_request_types
from quantyard.requests import ClusterRequest

GIB = 2**30
FOLDERS = '--scratch "$SCRATCH" --artifacts "$SCRATCH"'
PLACE = SlurmPlace(Path("/opt/venv/bin/python"), Path("/opt/quantyard"), Path("/logs"), "/shared/store", {"LANG": "C"})
SETTINGS_OF_CLUSTER = {setting.name: setting.default for setting in SETTINGS if setting.group == "cluster"}


def a_spec(**changes: object) -> NodeSpec:
    return NodeSpec(
        label="quantize Q4_K_M", stage="quantize", key="a" * 64, code="b" * 64, image="local+c", request={},
        time_limit_s=3600.0, resources=NodeResources(cpus=8, memory_bytes=4 * GIB),
    ).model_copy(update=changes)


def an_end(code: ExitCode, kind: str = "planned", host: str = "node1") -> NodeEnd:
    result = StageResult(stage="quantize", exit_code=code, error=StageError(kind=kind, message="It failed."))
    return NodeEnd(job="slurm 7", node=RanOn(host=host), result=result)


# ---- the spec ----------------------------------------------------------------------------------------


def test_every_stage_has_a_request_that_a_node_can_read() -> None:
    assert set(stage_request_types()) == set(STAGES)
    for name, kind in stage_request_types().items():
        if not any(field.is_required() for field in kind.model_fields.values()):
            assert parse_stage_request(name, {}) == kind()


def test_a_request_of_an_unknown_stage_or_with_an_unknown_field_is_refused() -> None:
    with pytest.raises(ValueError, match="no stage"):
        parse_stage_request("bake", {})
    with pytest.raises(ValueError, match="colour"):
        parse_stage_request("verify", {"colour": "red"})


def test_a_spec_is_the_same_after_it_was_stored() -> None:
    spec = a_spec(secrets=("HF_TOKEN",))
    assert NodeSpec.model_validate_json(spec.model_dump_json()) == spec


# ---- the job -----------------------------------------------------------------------------------------


def test_the_resources_of_a_spec_are_options_of_sbatch() -> None:
    cluster = ClusterRequest(partition="gpu", account="lab", qos="low", constraint="h100", gres="gpu:h100:1")
    needs = NodeResources(cpus=16, memory_bytes=5 * GIB + 1, gpus=1, exclusive=True)
    options = sbatch_options(a_spec(resources=needs), cluster, PLACE, "host:1:2", avoid={"n2", "n1"}, most_s=1800.0)
    assert {
        "--cpus-per-task=16", "--mem=5121M", "--gres=gpu:h100:1", "--exclusive", "--partition=gpu", "--account=lab",
        "--qos=low", "--constraint=h100", "--exclude=n1,n2", "--time=30", "--requeue", "--export=HOME",
    } <= set(options)  # fmt: skip


def test_more_options_of_sbatch_are_passed_on_and_those_of_quantyard_are_not_among_them() -> None:
    values = SETTINGS_OF_CLUSTER | {"HF_TOKEN": "", "SLURM_OPTIONS": "--reservation=maint --nice=1 --mail-type='A,B'"}
    cluster = typed_cluster_request(values, {}, None)
    needs = NodeResources(memory_bytes=GIB, gpus=1, exclusive=True)
    options = sbatch_options(a_spec(resources=needs), cluster, PLACE, "host:1:2", avoid={"n1"})
    assert options[-3:] == ["--reservation=maint", "--nice=1", "--mail-type=A,B"]
    assert {option.partition("=")[0][2:] for option in options[:-3]} <= set(RESERVED_SBATCH_OPTIONS)


def test_what_a_spec_does_not_need_is_left_to_slurm() -> None:
    options = sbatch_options(a_spec(resources=NodeResources()), ClusterRequest(), PLACE, "host:1:2")
    left = ("--mem", "--gres", "--exclusive", "--partition", "--account", "--qos", "--constraint", "--exclude")
    assert not [option for option in options if option.startswith(left)]
    assert "--time=70" in options, "the stage's own limit comes first"


def test_a_job_is_known_by_its_key_and_its_submitter() -> None:
    spec = a_spec()
    assert parse_slurm_comment(slurm_job_comment(spec.key, "host:1:2")) == (spec.key, "host:1:2")
    assert spec.key[:16] in slurm_job_name(spec)
    for comment in ("", "(null)", "of somebody else", "quantyard"):
        assert parse_slurm_comment(comment) is None


def test_the_script_runs_one_command_and_quotes_what_it_is_given() -> None:
    place = SlurmPlace(Path("/a b/python"), Path("/opt/quantyard"), Path("/logs"), "/my store", {"NO_PROXY": "a, 'b'"})
    script = slurm_job_script(a_spec(), "specs/x.json", ClusterRequest(scratch="/scratch/$SLURM_JOB_ID"), place)
    assert script.splitlines()[-2:] == [
        'SCRATCH="/scratch/$SLURM_JOB_ID"',
        "exec '/a b/python' -m quantyard node run specs/x.json --store '/my store' --engine local " + FOLDERS,
    ]
    assert """export NO_PROXY='a, '"'"'b'"'"''""" in script


def test_no_secret_is_passed_to_jobs() -> None:
    environment = {
        "PATH": "/bin", "HF_TOKEN": "hf_abc", "HTTPS_PROXY": "http://me:secret@proxy:3128", "NO_PROXY": "localhost",
        "AWS_SECRET_ACCESS_KEY": "s3cret",
    }  # fmt: skip
    cluster = typed_cluster_request(SETTINGS_OF_CLUSTER | {"HF_TOKEN": "hf_abc"}, environment, None)
    assert cluster.variables == {"PATH": "/bin", "NO_PROXY": "localhost"} and cluster.nodes_lack_token
    script = slurm_job_script(a_spec(), "specs/x.json", cluster, PLACE)
    assert not any(word in script for word in ("hf_abc", "secret", "s3cret"))


@pytest.mark.parametrize(("engine", "own"), [("docker", "docker"), ("podman", "docker")])
def test_a_node_that_runs_containers_is_told_its_engine_and_its_registry(engine: str, own: str) -> None:
    values = SETTINGS_OF_CLUSTER | {"HF_TOKEN": "", "NODE_ENGINE": engine, "NODE_REGISTRY": "registry.lab:5000/team"}
    cluster = typed_cluster_request(values, {}, None)
    script = slurm_job_script(a_spec(engine=engine), "specs/x.json", cluster, PLACE)
    assert f"--engine {own} --node-engine {engine} --node-registry registry.lab:5000/team" in script


@pytest.mark.parametrize("text", ["https://lab/team", "lab/Team", "lab/a b", "lab/team@sha256:1"])
def test_a_registry_is_a_host_and_a_path_and_for_containers_alone(text: str) -> None:
    for values in ({"NODE_ENGINE": "docker", "NODE_REGISTRY": text}, {"NODE_REGISTRY": "registry.lab/team"}):
        with pytest.raises(BadRequest, match="NODE_REGISTRY=") as caught:
            typed_cluster_request(SETTINGS_OF_CLUSTER | {"HF_TOKEN": ""} | values, {}, None)
        assert caught.value.hint


def test_keys_of_a_bucket_that_nodes_cannot_see_are_refused_before_a_job(tmp_path: Path) -> None:
    values = SETTINGS_OF_CLUSTER | {"HF_TOKEN": "", "STORE": "s3://bucket/yard"}
    file, given = tmp_path / "credentials", {"AWS_SECRET_ACCESS_KEY": "s3cret"}
    named = given | {"AWS_SHARED_CREDENTIALS_FILE": str(file)}
    with pytest.raises(BadRequest, match="nodes do not see it") as caught:
        typed_cluster_request(values, named, None, "slurm")
    assert "s3cret" not in caught.value.message + caught.value.hint
    file.write_text("[default]\n")
    cluster = typed_cluster_request(values, named, None, "slurm")
    assert cluster.variables == {"AWS_SHARED_CREDENTIALS_FILE": str(file)}
    assert typed_cluster_request(values | {"STORE": "/shared"}, given, None, "slurm").variables == {}


@pytest.mark.parametrize(
    ("text", "seconds"), [("90m", 5400.0), ("12h", 43200.0), ("2d", 172800.0), ("1-12:00:00", 129600.0), ("", None)]
)
def test_a_time_is_written_as_people_or_as_slurm_write_it(text: str, seconds: float | None) -> None:
    values = SETTINGS_OF_CLUSTER | {"HF_TOKEN": "", "SLURM_TIME": text}
    assert typed_cluster_request(values, {}, None).time_limit_s == seconds


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("SLURM_TIME", "soon"), ("SLURM_ACCOUNT", "lab; rm"), ("NODE_ENGINE", "vm"), ("SCRATCH", "local"),
        ("SLURM_OPTIONS", "-p main"), ("SLURM_OPTIONS", "--partition=gpu"), ("SLURM_OPTIONS", "--job=x"),
        ("SLURM_OPTIONS", "--nice '1"), ("SLURM_OPTIONS", "name"),
        ("SCRATCH", '/a"; rm'), ("SCRATCH", "/a`id`"), ("SCRATCH", "/$(id)"),
    ],
)
def test_a_setting_that_slurm_cannot_take_is_refused(name: str, text: str) -> None:
    with pytest.raises(BadRequest, match=name):
        typed_cluster_request(SETTINGS_OF_CLUSTER | {"HF_TOKEN": "", name: text}, {}, None)


# ---- what Slurm says ---------------------------------------------------------------------------------


def test_the_smallest_node_of_the_partition_counts() -> None:
    said = (
        "main*|2|64+|250000|2-00:00:00|idle\nmain*|1|32|128000|2-00:00:00|mixed\nmain*|1|8|1|2-00:00:00|down*\n"
        "gpu|1|8|9|infinite|idle\n"
    )
    nodes = _parse_sinfo(said, "")
    assert (nodes.partition, nodes.count, nodes.cpus, nodes.most_s) == ("main", 3, 32, 172800.0)
    assert nodes.memory_bytes == 128000 * 2**20
    assert _parse_sinfo(said, "gpu").most_s is None


@pytest.mark.parametrize("said", ["", "main*|2|8|9|infinite|down*\n", "other|2|8|9|infinite|idle\n"])
def test_a_partition_without_a_usable_node_is_refused(said: str) -> None:
    with pytest.raises(EngineError, match="no node that takes jobs"):
        _parse_sinfo(said, "")


@pytest.mark.parametrize(
    ("state", "told", "fate"),
    [
        ("PENDING", "queued", ""), ("RUNNING", "running", ""), ("COMPLETING", "running", ""),
        ("COMPLETED", "ended", ""), ("FAILED", "ended", ""), ("NODE_FAIL", "ended", "node"),
        ("TIMEOUT", "ended", "time"), ("OUT_OF_MEMORY", "ended", "memory"),
        ("CANCELLED", "ended", "cancelled"), ("PREEMPTED", "ended", "preempted"),
    ],
)  # fmt: skip
def test_a_state_of_slurm_is_one_of_ours(state: str, told: str, fate: str) -> None:
    status = _status_of_row(["1", state, "None", "node1", ""])
    assert (status.state, status.fate) == (told, fate)


@pytest.mark.parametrize(
    ("said", "setting"),
    [
        ("Invalid partition name specified", "SLURM_PARTITION"), ("Invalid qos specification", "SLURM_QOS"),
        ("Invalid account or account/partition combination specified", "SLURM_ACCOUNT"),
        ("Invalid feature specification", "SLURM_CONSTRAINT"),
        ("Invalid generic resource (gres) specification", "SLURM_GRES"),
        ("Requested reservation is invalid", "SLURM_OPTIONS"), ("Invalid license specification", "SLURM_OPTIONS"),
        ("Requested time limit is invalid (missing or exceeds some limit)", "SLURM_TIME"),
        ("Requested node configuration is not available", "MEMORY"), ("Munge encode failed", "munge"),
    ],
)  # fmt: skip
def test_what_sbatch_refuses_has_a_hint_with_the_setting(said: str, setting: str) -> None:
    assert setting in _slurm_hint(f"sbatch: error: Batch job submission failed: {said}")
    assert _reason_of_slurm(f"sbatch: error: Batch job submission failed: {said}") == said


def test_an_unknown_option_is_the_reason_and_not_the_advice_below_it() -> None:
    said = "sbatch: unrecognized option '--bogus=1'\nTry \"sbatch --help\" for more information"
    assert _reason_of_slurm(said) == "unrecognized option '--bogus=1'" and "SLURM_OPTIONS" in _slurm_hint(said)


def test_a_missing_command_of_slurm_names_another_engine() -> None:
    with pytest.raises(EngineError, match="not installed") as caught:
        run_slurm_command("sbatch-of-nobody")
    assert "ENGINE=local" in caught.value.hint


# ---- tries -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [ExitCode.BAD_REQUEST, ExitCode.UNSUPPORTED_MODEL, ExitCode.BUG])
def test_what_would_fail_again_is_not_tried_again(code: ExitCode) -> None:
    assert StageTries(a_spec(), 64 * GIB).after_end(an_end(code)) is None


def test_a_network_that_fails_is_tried_again_after_longer_and_longer_waits() -> None:
    tries = StageTries(a_spec(), 64 * GIB)
    ends = [tries.after_end(an_end(ExitCode.NETWORK)) for _ in range(4)]
    assert [end.wait_s if end else None for end in ends] == [30.0, 120.0, 600.0, None]


def test_memory_that_ran_out_is_doubled_once_up_to_that_of_a_node() -> None:
    tries = StageTries(a_spec(), 6 * GIB)
    again = tries.after_end(an_end(ExitCode.RESOURCES, "out-of-memory"))
    assert again is not None and again.spec.resources.memory_bytes == 6 * GIB
    assert tries.after_memory() is None
    assert StageTries(a_spec(), 4 * GIB).after_memory() is None, "it had the whole node"


def test_a_full_disk_is_avoided_once() -> None:
    tries = StageTries(a_spec(), 64 * GIB)
    assert tries.after_end(an_end(ExitCode.RESOURCES, "out-of-disk", "node2")) is not None
    assert tries.avoided == {"node2"} and tries.after_end(an_end(ExitCode.RESOURCES, "not-enough-disk")) is None


def test_a_lost_node_is_tried_three_times() -> None:
    tries, lost = StageTries(a_spec(), 64 * GIB), JobStatus("ended", fate="node", node="node1")
    assert [tries.after_lost(lost) is not None for _ in range(4)] == [True, True, True, False]
