"""No command talks to anybody: all of them work with sockets denied."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from ostate.commands.demo_run import STEPS
from tests import real

DENIED = """
import socket, sys

def deny(event, args):
    if event.startswith("socket.") and event not in ("socket.gethostname",):
        if event == "socket.__new__" and args[1] == socket.AF_UNIX:
            return
        sys.stderr.write(f"NETWORK {event} {args!r}\\n")
        raise OSError(f"denied: {event}")

sys.addaudithook(deny)
from click.testing import CliRunner
from ostate.cli import main
for line in sys.stdin:
    args = line.rstrip("\\n").split("\\t")
    done = CliRunner().invoke(main, args)
    print(args[0], done.exit_code, repr(done.exception) if done.exit_code not in (0, 1) else "", done.output[-300:] if done.exit_code > 1 else "")
"""
PROBED = ["--model", "{place}/demo/base", "--adapter", f"{{place}}/demo/run/checkpoint-{STEPS}", "--data", "{place}/lines.jsonl"]


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    place = tmp_path_factory.mktemp("network")
    case, base = real.case("opt_kvq"), real.case("opt_kvq").base
    state, out = str(case.state.parent), str(place / "named.safetensors")
    commands = [
        ["inspect", state, "--values"],
        ["names", state, "--base", str(base)],
        ["repair", state, "--base", str(base), "-o", out],
        ["verify", out, "--adapter", state],
        ["validate", out, "--deep"],
        ["diff", out, state],
        ["export", out, "--to", "torch", "--for", state, "-o", str(place / "exported.pt")],
        ["report", out, "-o", str(place / "report.html")],
        ["completion", "bash"],
        ["demo", "--folder", str(place / "demo")],
        ["probe", str(place / "demo" / "lora.ostate.safetensors"), *PROBED],
    ]
    (place / "lines.jsonl").write_text("".join(json.dumps({"input_ids": list(range(start, start + 16))}) + "\n" for start in (1, 20, 40, 60)))
    commands = [[part.format(place=place) for part in args] for args in commands]
    environment = {key: value for key, value in os.environ.items() if key not in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")}
    asked = "\n".join("\t".join(args) for args in commands)
    done = subprocess.run([sys.executable, "-c", DENIED], input=asked, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return [args[0] for args in commands], done


def test_no_command_opens_a_socket(said):
    commands, done = said
    assert "NETWORK" not in done.stderr, done.stderr
    codes = [line.split(" ")[:2] for line in done.stdout.splitlines() if line.split(" ")[0] in commands]
    assert codes == [[command, "0"] for command in commands], done.stdout


def test_a_socket_would_be_seen():
    program = DENIED.split("from click")[0] + "socket.create_connection(('127.0.0.1', 9))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "NETWORK" in done.stderr
    assert "denied" in done.stderr
