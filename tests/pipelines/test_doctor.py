"""`dnassm doctor`: backends, and a certificate that no wrong kernel gets."""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys

import pytest
import torch
from click.testing import CliRunner

from dnassm import doctor
from dnassm.errors import ArtifactError, ConfigError
from dnassm.kernels import laws
from dnassm.kernels.causal_conv1d.checks import SUBJECT as CONV
from dnassm.kernels.laws import Bound, Error
from dnassm.pipelines.cli import cli, main

OPS = set(doctor.subjects())
DEVICE = ["--device", "cpu"]


def run(*arguments: str):
    return CliRunner().invoke(cli, ["doctor", *DEVICE, *arguments])


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Printed and written by one run."""
    out = tmp_path_factory.mktemp("doctor") / "new" / "certificate.json"
    done = run("--length", "64", "--json", "--out", str(out))
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert json.loads(out.read_text(encoding="utf-8")) == found
    return found


def test_a_certificate_says_what_was_checked_with_what(certificate):
    assert certificate["format"] == "dnassm-certificate"
    assert certificate["passed"] is True
    assert certificate["length"] == 64
    assert certificate["device"].startswith("cpu")
    assert {"python", "dnassm", "torch"} <= certificate["versions"].keys()
    assert certificate["sources"].keys() == OPS
    assert "reference" in certificate["truth"]
    assert {"created", "seconds", "commit", "batch", "channels"} <= certificate.keys()


def test_every_backend_is_listed_with_why_it_cannot_run_and_one_is_chosen(certificate):
    assert certificate["backends"].keys() == OPS
    assert {"causal_conv1d", "linear_cross_entropy", "norm", "selective_scan", "ssd"} <= OPS
    for found in certificate["backends"].values():
        names = {entry["name"]: entry for entry in found}
        if "composed" not in names:  # otherwise it is made of other ops
            assert {"triton", "portable", "reference"} <= names.keys()
        for name in {"cuda", "triton"} & names.keys():
            assert names[name]["reason"] is not None
        assert all(entry["usable"] == (entry["reason"] is None) for entry in found)
        chosen = [entry["name"] for entry in found if entry["chosen"]]
        assert chosen == [next(entry["name"] for entry in found if entry["usable"])]


def test_values_and_every_gradient_and_every_law_are_in_it(certificate):
    checks = certificate["checks"]
    assert {check["op"] for check in checks} == OPS
    assert all(check["passed"] and check["problem"] is None for check in checks)
    of_scan = {check["name"]: check for check in checks if check["op"] == "selective_scan"}
    words = ("chain", "step", "row", "packed", "reverse", "same bits", "long memory")
    assert [word for word in words if not any(word in name for name in of_scan)] == []
    gradients = of_scan["gradients against float64"]
    every = {"dx", "ddt", "dA", "dB", "dC", "dD", "dz", "ddt_bias", "dinitial_state"}
    assert gradients["tensors"].keys() == every
    for check in checks:
        figure, tolerance = check["figure"], check["tolerance"]
        assert 0 <= figure["rms"] <= tolerance["rms"] < 1e-3
        assert 0 <= figure["worst"] <= tolerance["worst"] < 1e-3
        assert tolerance["why"]


def test_a_person_reads_tables():
    done = run("--length", "8")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].startswith("device    cpu")
    assert any("chosen" in line for line in lines)
    assert any("selective_scan" in line and "pass" in line for line in lines)
    assert "checks pass in" in lines[-1]
    assert "doctor" in done.stderr  # progress


def test_a_longer_sequence_is_held_to_the_portable_float64_path_which_is_checked_first():
    found = doctor.examine(length=laws.SHORT + 3, device="cpu")
    assert found.passed
    assert "portable backend in float64" in found.facts["truth"]
    first = next(check for check in found.checks if check.op == "selective_scan")
    assert first.name == f"the truth is the reference at length {laws.SHORT}"
    assert first.bound.rms <= 1e-10


def test_one_op_can_be_asked_for():
    done = run("--length", "8", "--op", "norm", "--json")
    assert done.exit_code == 0, done.output
    assert {check["op"] for check in json.loads(done.stdout)["checks"]} == {"norm"}


def test_an_op_that_there_is_not_is_named_with_those_there_are():
    with pytest.raises(ConfigError, match=r"--op selectve_scan: expected one of .*Did you mean"):
        doctor.examine(length=8, ops=["selectve_scan"])


def test_an_existing_certificate_is_kept_without_force(tmp_path):
    out = tmp_path / "certificate.json"
    out.write_text("mine")
    with pytest.raises(ArtifactError, match="--force"):
        doctor.examine(length=8, device="cpu", out=out)
    assert out.read_text() == "mine"
    assert run("--length", "8", "--out", str(out), "--force").exit_code == 0
    assert json.loads(out.read_text())["passed"] is True


@pytest.mark.parametrize("length", ["7", "0", "-5", "many", "1.5"])
def test_a_bad_length_is_a_usage_error(length):
    done = run("--length", length)
    assert done.exit_code == 2
    assert "--length" in done.stderr
    assert done.stdout == ""


def test_from_python_a_short_length_is_named_too():
    with pytest.raises(ConfigError, match="--length: expected at least 8, got 3"):
        doctor.examine(length=3)


def test_a_gpu_that_is_not_there_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["dnassm", "doctor", "--device", "cuda"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1
    assert capsys.readouterr().err == (
        "dnassm: error: --device cuda: torch sees no GPU here; use --device cpu\n"
    )


# A wrong kernel


def chosen_backend():
    """Of the convolution, on these tensors."""
    call = CONV.arguments(CONV.inputs(torch.float32, 1, 8, 4))
    return CONV.backends.choose("auto", call)


@pytest.fixture
def broken(monkeypatch):
    """Replace the forward of the convolution: broken(change(call, forward) -> y, state)."""
    monkeypatch.setattr(doctor, "subjects", lambda: {"causal_conv1d": CONV})
    module = chosen_backend()
    forward = module.forward

    def put(change):
        monkeypatch.setattr(module, "forward", lambda call: change(call, forward))

    return put


def failed(certificate: doctor.Certificate) -> set[str]:
    """First words of the checks that failed."""
    return {check.name.partition(" ")[0] for check in certificate.checks if not check.passed}


def wrong_value(call, forward):
    y, state = forward(call)
    y[0, -1, 0] += 1e-3 * y.abs().max()
    return y, state


def lost_state(call, forward):
    y, state = forward(call)
    return y, torch.zeros_like(state)


def one_direction(call, forward):
    return forward(dataclasses.replace(call, reverse=False))


def no_borders(call, forward):
    if call.cu_seqlens is None:
        return forward(call)
    first = call.initial_state[:1]
    y, state = forward(dataclasses.replace(call, cu_seqlens=None, initial_state=first))
    return y, state.expand(call.state_shape).contiguous()


def mixed_rows(call, forward):
    y, state = forward(call)
    return y + (1e-3 * y[1:2] if len(y) > 1 else 0), state


def not_a_number(call, forward):
    y, state = forward(call)
    return y.fill_(torch.nan), state


counter = itertools.count()


def another_every_time(call, forward):
    y, state = forward(call)
    return y * (1 + 2.0**-23 * (next(counter) % 37)), state


BROKEN = {
    wrong_value: {"values", "a", "step", "packed", "reverse"},
    lost_state: {"values", "a", "step"},
    one_direction: {"reverse"},
    no_borders: {"packed"},
    mixed_rows: {"values", "a", "step"},
    not_a_number: {"values", "a", "step", "packed", "reverse", "the"},
    another_every_time: {"the"},
}


def from_before(call, forward):
    """What a sequence drawn out by repeating its start would hide."""
    y, state = forward(call)
    y[:, laws.SHORT + 9 : 2 * laws.SHORT] = y[:, 9 : laws.SHORT].clone()
    return y, state


def test_a_long_input_repeats_nothing_that_would_hide_a_wrong_place(broken):
    broken(from_before)
    found = doctor.examine(length=2 * laws.SHORT, device="cpu")  # 9: beyond the taps
    assert "values" in failed(found)


def test_a_long_input_has_the_positions_of_a_short_one_in_an_order_of_its_own():
    device = torch.device("cpu")
    short, long, again = (
        laws.Probe(CONV, torch.float32, length, 4, device).inputs
        for length in (laws.SHORT, 2 * laws.SHORT, 2 * laws.SHORT)
    )
    assert long.keys() == short.keys()
    assert all(torch.equal(long[name], again[name]) for name in long)
    for given, drawn in zip(short["x"], long["x"], strict=True):  # by row
        assert len(drawn) == 2 * laws.SHORT
        assert set(drawn[:, 0].tolist()) <= set(given[:, 0].tolist())
        assert len(drawn.unique(dim=0)) > laws.SHORT // 2
        assert not torch.equal(drawn[: laws.SHORT], given)
    assert torch.equal(long["weight"], short["weight"])


@pytest.mark.parametrize("change", BROKEN, ids=lambda change: change.__name__)
def test_a_wrong_kernel_fails_the_law_that_it_breaks(broken, change):
    broken(change)
    found = doctor.examine(length=32, device="cpu")
    assert not found.passed
    assert failed(found) <= BROKEN[change]
    must = {"one_direction": "reverse", "no_borders": "packed", "another_every_time": "the"}
    assert must.get(change.__name__, "values") in failed(found)


def test_a_failed_check_is_exit_1_and_named_in_one_line(broken, monkeypatch, capsys, tmp_path):
    broken(lost_state)
    out = tmp_path / "certificate.json"
    arguments = ["dnassm", "doctor", *DEVICE, "--length", "32", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1
    said = capsys.readouterr()
    assert "FAIL" in said.out
    line = said.err.splitlines()[-1]
    name = chosen_backend().__name__.rpartition(".")[2]
    assert line.startswith(f"dnassm: error: check failed: causal_conv1d ({name}, float32): values")
    assert "state is off by rms 1, worst 1; allowed 1e-05 and 1e-05" in line
    written = json.loads(out.read_text(encoding="utf-8"))
    assert written["passed"] is False
    assert [check["name"] for check in written["checks"] if not check["passed"]]


def test_not_a_number_is_null_in_the_certificate(broken):
    broken(not_a_number)
    written = doctor.examine(length=32, device="cpu").to_json()
    assert json.loads(json.dumps(written, allow_nan=False))["passed"] is False
    assert written["checks"][0]["figure"] == {"tensor": "y", "rms": None, "worst": None}


def test_a_wider_bound_is_that_of_its_tensor_alone():
    bound = Bound(1e-3, 1e-2, "some rounding", {"dA": 2.0})
    errors = {"y": Error(9e-4, 9e-3), "dA": Error(1.5e-3, 1e-2)}

    def checked(bound, **found):
        return doctor.Check("op", "here", "bfloat16", "law", bound, errors | found, None, 0.1)

    assert checked(bound).passed
    assert checked(bound).nearest[0] == "y"
    assert checked(bound).to_json()["tolerance"] == {
        "rms": 1e-3,
        "worst": 1e-2,
        "why": "some rounding",
    }
    assert not checked(bound, y=errors["dA"]).passed
    beyond = checked(bound, dA=Error(3e-3, 1e-2))
    assert not beyond.passed
    assert "dA is off by rms 0.003" in beyond.fault()
    assert "allowed 0.002 and 0.02" in beyond.fault()
    assert checked(bound.grown(2), dA=Error(3e-3, 1e-2)).passed


def test_a_kernel_that_breaks_down_is_a_finding(broken):
    def no_memory(call, forward):
        raise RuntimeError("CUDA out of memory\nmany lines")

    broken(no_memory)
    found = doctor.examine(length=32, device="cpu")
    assert not any(check.passed for check in found.checks)
    assert all(check.problem == "RuntimeError: CUDA out of memory" for check in found.checks)
    assert "FAIL" in found.render()
    json.dumps(found.to_json(), allow_nan=False)


def test_a_stop_in_the_middle_leaves_nothing(broken, tmp_path):
    def stop(call, forward):
        raise KeyboardInterrupt

    broken(stop)
    with pytest.raises(KeyboardInterrupt):
        doctor.examine(length=32, device="cpu", out=tmp_path / "certificate.json")
    assert list(tmp_path.iterdir()) == []


def test_an_op_joins_by_its_folder(tmp_path, monkeypatch):
    folder = tmp_path / "third_op"
    folder.mkdir()
    (folder / "__init__.py").write_text("BACKENDS = object()\n")
    (folder / "checks.py").write_text("SUBJECT = 'how it is checked'\n")
    monkeypatch.setattr(doctor.kernels, "__path__", [*doctor.kernels.__path__, str(tmp_path)])
    found = doctor.subjects()
    for name in ("dnassm.kernels.third_op", "dnassm.kernels.third_op.checks"):
        sys.modules.pop(name)
    assert found.keys() == {*OPS, "third_op"}
    assert found["third_op"] == "how it is checked"
