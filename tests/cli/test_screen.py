"""What people see: on a terminal, in a pipe, in a narrow window, and when a file's names are hostile."""

from __future__ import annotations

import ast
import fcntl
import json
import math
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ostate
from ostate.report import inspection_text, verdict_text
from ostate.report.blocks import FindingBlock, Line, Table
from ostate.report.json_text import as_json
from ostate.report.rich_text import rendered
from ostate.report.text import plain, printable, shorten
from tests.documents import INSPECT, REPAIR, VERIFY, B, changed
from tests.real import CASES

_PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
HOSTILE = "layers.0\x1b]0;owned\x07\r\n\u202egpj.\u200bexe\ud800"
NAMES = [
    f"base_model.model.model.layers.{layer}.self_attn.{kind}_proj.lora_{side}.default.weight"
    for layer in range(32)
    for kind in "qkvo"
    for side in "AB"
]


def test_a_line_of_a_title_and_a_text_goes_on_under_the_text():
    said = rendered([Line("  adapter  checkpoint-300/adapter_model.safetensors: 88 of 88 match")], width=60, colour=False).splitlines()
    assert said == ["  adapter  checkpoint-300/adapter_model.safetensors: 88 of", "           88 match"]


def test_names_fold_by_what_they_share():
    assert shorten(NAMES) == "base_model.model.model.layers.{0..31}.self_attn.{k,o,q,v}_proj.lora_{A,B}.default.weight"


def test_names_that_miss_a_layer_are_not_folded_over_it():
    names = [name for name in NAMES if "layers.7." not in name and "lora_A" in name and ".q_proj" in name]
    assert shorten(names) == "base_model.model.model.layers.{0..6,8..31}.self_attn.q_proj.lora_A.default.weight"


def test_numbers_within_a_part_of_a_name_fold_too():
    assert shorten([f"net.block{i}x.weight" for i in range(12)]) == "net.block{0..11}x.weight"
    assert shorten(["net.b10.weight", "net.b12.weight"]) == "net.b{10,12}.weight"
    assert shorten(["net.b1.weight", "net.b01.weight"]) == "net.{b01,b1}.weight"


def test_names_that_are_joined_share_whole_words():
    assert shorten([f"layers.1.{part}.bias" for part in ("fc1", "fc2", "final_layer_norm")]) == "layers.1.{fc1,fc2,final_layer_norm}.bias"
    assert shorten(["norm_in.weight", "norm_out.weight"]) == "norm_{in,out}.weight"


def test_names_that_a_named_file_does_not_keep_are_counted():
    assert shorten(["position 1", "position 2"], further=3) == "position {1..2}, … (3 more)"


@_PATIENT
@given(st.lists(st.text(alphabet="a.0²₃7", min_size=1, max_size=6), min_size=1, max_size=6))
def test_folding_takes_any_name(names):
    assert shorten(names, 0)


@_PATIENT
@given(st.text())
def test_nothing_that_is_not_visible_gets_through(text):
    assert printable(text).isprintable()


def test_a_visible_name_stays_as_it_is():
    assert printable("模型.层.0.größe") == "模型.层.0.größe"


def test_a_hostile_name_is_shown_and_not_obeyed():
    document = changed("inspect", "entries.0.name", HOSTILE)
    document["names"] = HOSTILE
    document["source"] = HOSTILE
    document["layout"] = HOSTILE
    document["fit"]["adapter"] = HOSTILE
    document["findings"][0]["names"] = [HOSTILE]
    document["values"] = {HOSTILE: {"elements": 1}}
    blocks = inspection_text.blocks(document)
    for text in ("\n".join(plain(blocks)), ESCAPE.sub("", rendered(blocks, width=60, colour=True))):
        assert "\x1b" not in text
        assert "\x07" not in text
        assert "\u202e" not in text
        assert "\\x1b]0;owned\\x07" in text


@pytest.mark.parametrize("width", [20, 40, 80, 200])
@pytest.mark.parametrize("document", [INSPECT, VERIFY, REPAIR], ids=lambda document: document["document"])
def test_a_name_is_never_broken_however_narrow_the_terminal(width, document):
    blocks = (inspection_text if document is INSPECT else verdict_text).blocks(document, full=True)
    assert B in rendered(blocks, width=width, colour=False)


def test_lines_other_than_names_keep_to_the_width():
    words = "the tensor values prove some names " * 9
    blocks = [Line(words), FindingBlock("warning", words, (), words)]
    for line in rendered(blocks, width=50, colour=False).splitlines():
        assert len(line) <= 50


def test_a_table_too_wide_becomes_a_list_of_the_same_cells():
    table = Table(("name", "position", "score"), ((B, "7", "1.5"),))
    wide, narrow = (rendered([table], width=width, colour=False) for width in (200, 50))
    assert "─" in wide
    assert "─" not in narrow
    for cell in (B, "7", "1.5"):
        assert cell in narrow


def test_numbers_stand_to_the_right_and_nothing_is_cropped_at_any_width():
    table = Table(("name", "count"), ((B, "7"), ("short", "1234567")))
    assert rendered([table], width=200, colour=False).splitlines()[2].rstrip().endswith("      7")
    for width in range(60, 110):
        shown = rendered([table], width=width, colour=False)
        assert B in shown
        assert "1234567" in shown
        assert "name" in shown


def test_without_colour_no_escape_is_written():
    assert "\x1b" not in rendered(verdict_text.blocks(REPAIR), width=80, colour=False)
    assert "\x1b" in rendered(verdict_text.blocks(REPAIR), width=80, colour=True)


def test_plain_lines_say_what_the_terminal_says():
    blocks = verdict_text.blocks(VERIFY, full=True)
    seen = ESCAPE.sub("", rendered(blocks, width=400, colour=True)).split()
    assert [word for word in " ".join(plain(blocks)).split() if word not in seen] == []


def test_full_leaves_nothing_out():
    document = changed("inspect", "entries", [])
    document["entries"] = [
        {
            "position": i,
            "group": 0,
            "name": None,
            "shape": [i],
            "step": 1.0,
            "slots": {"exp_avg": {"dtype": "F32", "encoding": "plain", "shape": [i]}},
        }
        for i in range(30)
    ]
    assert any("6 more rows: -v" in line for line in plain(inspection_text.blocks(document)))
    full = plain(inspection_text.blocks(document, full=True))
    assert any(line.split()[:4] == ["exp_avg", "F32", "plain", "29"] for line in full)


SAY = """
import json, sys, click
from ostate.cli.screen import loudness_options, show, progress, say_error
from ostate.errors import ReadError
from ostate.report import verdict_text
@click.command(params=loudness_options())
@click.option("--json", "as_json", is_flag=True)
@click.option("--slow", is_flag=True)
@click.option("--fail", is_flag=True)
def main(as_json, slow, fail):
    if fail:
        say_error(ReadError("no\\x1b[31m state", where="a\\nb", fix="look"))
        return
    if slow:
        import time
        import ostate.cli.screen as screen
        screen._PATIENCE = 0.0
        with progress("read") as step:
            if step:
                step(1 << 20, 4 << 20)
                while step.__self__._bar is None:  # it comes from a timer's thread
                    time.sleep(0.01)
                step(2 << 20, 4 << 20)
                time.sleep(0.1)
                step(2 << 20, 4 << 20)
                step.__self__._bar.refresh()
                print("drawn")
    show(json.loads(sys.stdin.read() if False else open(DOCUMENT).read()), verdict_text.blocks, as_json=as_json)
    if "rich" in sys.modules:
        print("RICH")
main()
"""


def run(tmp_path, *args, terminal=False, width=100, **environment):
    """Run a small command that prints the repair document; return (stdout, stderr)."""
    document = tmp_path / "document.json"
    document.write_text(json.dumps(REPAIR))
    code = f"DOCUMENT = {str(document)!r}\n{SAY}"
    env = {**{key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR")}, "TERM": "xterm-256color", **environment}
    if not terminal:
        done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, env=env, check=True)
        return done.stdout.decode(), done.stderr.decode()
    return _on_a_terminal(code, args, env=env, width=width), ""


def _on_a_terminal(code, args, *, env=None, width=100):
    """Run Python code as on a terminal and return what was seen there."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    process = subprocess.Popen([sys.executable, "-c", code, *args], stdin=subprocess.DEVNULL, stdout=slave, stderr=slave, env=env)
    os.close(slave)
    seen = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:
            break
        if not piece:
            break
        seen += piece
    os.close(master)
    assert process.wait() == 0, seen.decode()
    return seen.decode().replace("\r\n", "\n")


def test_a_pipe_gets_plain_text_and_rich_stays_away(tmp_path):
    out, err = run(tmp_path)
    assert out.splitlines() == plain(verdict_text.blocks(REPAIR))
    assert err == ""


def test_a_terminal_gets_colour(tmp_path):
    out, _ = run(tmp_path, terminal=True)
    assert "\x1b[33mpartial" in out
    assert "RICH" in out


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=str)
def test_a_terminal_that_wants_no_colour_gets_none(tmp_path, environment):
    out, _ = run(tmp_path, terminal=True, **environment)
    assert "partial" in out
    assert "\x1b" not in out


def test_numbers_that_json_does_not_know_become_text():
    document = changed("verify", "ordering.weakest.0.margin", float("inf"))
    assert json.loads(as_json(document)) == VERIFY


def test_json_is_json_on_a_terminal_too(tmp_path):
    out, _ = run(tmp_path, "--json", terminal=True)
    assert json.loads(out) == REPAIR


def test_quiet_leaves_only_what_a_person_should_see(tmp_path):
    out, err = run(tmp_path, "-q")
    assert out == ""
    assert err.splitlines()[0] == "WARNING: 1 parameter has a second moment of zeros"


def test_quiet_and_verbose_together_are_refused(tmp_path):
    with pytest.raises(subprocess.CalledProcessError) as caught:
        run(tmp_path, "-q", "-v")
    assert b"exclude each other" in caught.value.stderr
    assert caught.value.returncode == 2


def test_a_stream_that_knows_only_ascii_does_not_crash(tmp_path):
    out, _ = run(tmp_path, PYTHONIOENCODING="ascii", PYTHONUTF8="0", LC_ALL="C")
    assert "partial" in out


def test_an_error_says_what_where_and_fix_and_obeys_nothing(tmp_path):
    _, err = run(tmp_path, "--fail")
    assert err.splitlines() == ["Error: no\\x1b[31m state", "  at:  a\\nb", "  fix: look"]
    _, err = run(tmp_path, "--fail", "-v")
    assert "ReadError" in err


def test_progress_shows_rate_and_time_left_on_a_terminal(tmp_path):
    out, _ = run(tmp_path, "--slow", terminal=True, width=120)
    assert "drawn" in out
    assert "50%" in out
    assert "/s" in out
    assert "2.1/4.2 MB" in out


def test_progress_is_silent_in_a_pipe_and_under_quiet(tmp_path):
    assert "drawn" not in run(tmp_path, "--slow")[0]
    assert "drawn" not in run(tmp_path, "--slow", FORCE_COLOR="1")[0]
    assert "drawn" not in run(tmp_path, "--slow", "-q", terminal=True)[0]


WATCHED = """
import sys
import ostate.cli.screen as screen
screen._PATIENCE = 0.0
class Seen(list):
    def step(self, done, total): self.append((done, total))
    def draw(self): pass
    def stop(self): open(REPORT, "a").write(repr((self[0], self[-1], len(self))) + "\\n")
import ostate.cli.screen as screen
screen.Watch = lambda title, unit: Seen()
from ostate.cli import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize("command", ["repair", "verify", "diff", "names"])
def test_every_command_that_reads_numbers_counts_them_towards_what_it_announced(tmp_path, command):
    checkpoint, named = str(CASES / "long" / "long_opt" / "checkpoint-300"), str(tmp_path / "named.safetensors")
    ostate.repair(checkpoint, named)
    more = {"repair": ["-o", str(tmp_path / "out.safetensors")], "diff": [named]}
    report = tmp_path / "report"
    _on_a_terminal(f"REPORT = {str(report)!r}\n{WATCHED}", [command, checkpoint, *more.get(command, [])])
    first, (done, total), calls = ast.literal_eval(report.read_text())
    assert calls > 100
    assert first[0] < done
    assert 0.7 * total < done <= total
    moments = sum(2 * 4 * math.prod(row.shape) for row in ostate.load(named).parameters.values())
    assert total >= moments
