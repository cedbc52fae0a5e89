"""The page itself, without a browser: what it holds, what it must not hold, and that it is sound HTML."""

from __future__ import annotations

import re
from functools import cache
from html.parser import HTMLParser

import pytest

from ostate.core.naming import Ordering
from ostate.core.state import Finding
from ostate.errors import ReadError
from ostate.plot import evidence_matrices
from ostate.report import svg
from ostate.report.figures import Heat, Lines, Matrix, Ridges, clamped_kinds, scale_ridges, update_size
from ostate.report.markup import breakable
from ostate.report.numbers import measure
from ostate.report.page import Subject, html
from tests.records import replace
from tests.report.states import real

VOID = {"meta", "link", "br", "wbr"}
HOSTILE = '"><script>alert(1)</script>\x1b[31m</title></svg>\u202e\ud800'


class Outline(HTMLParser):
    """Reads a page strictly: every tag closed in order, every id once."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> out of order"

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


@cache
def subject(name):
    raw, adapter, keys, state = real(name)
    return Subject(
        path=f"run/{name}/lora.ostate.safetensors",
        state=state,
        numbers=measure(state),
        matrices=evidence_matrices(raw, adapter, keys),
        manifest='{\n "format_version": 1\n}',
    )


@cache
def one_page():
    return html([subject("long_opt_step60")])


def test_the_page_is_sound_html():
    outline = Outline(one_page())
    ids = [attrs["id"] for _, attrs in outline.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    for _, attrs in outline.tags:
        for wanted in (attrs.get("aria-labelledby") or "").split():
            assert wanted in ids


def test_the_page_says_what_it_must():
    outline = Outline(one_page())
    for text in (
        "verified: the tensor values rule out every other order",
        "of such numbers under any other order",
        "step 60",
        "Evidence: adapter tensor against position",
        "out_proj.lora_A, layers 0-10",
        "position of the state",
        "adapter tensor",
        "line: a million to one (13.8)",
        "2 more matrices",
        "Second moment",
        "Scale",
        "Update size",
        "Step and coverage by layer",
        "What to do: look <here>",
        "<b>bold</b> & brave",
        "Manifest",
        '"format_version": 1',
        "base_model.model.model.decoder.layers.{0..10}.self_attn.{k,out,q,v}_proj.lora_{A,B}.default.weight",
    ):
        assert text in re.sub(r"\s+", " ", outline.text), text


def test_names_break_at_their_dots_and_names_that_are_all_of_them_are_not_listed_twice():
    one = subject("long_opt_step60")
    state = replace(one.state, ordering=replace(one.state.ordering, verdict="verified", undecided=tuple(one.state.parameters)))
    page = html([replace(one, state=state)])
    assert "base_model.<wbr>model.<wbr>model.<wbr>decoder.<wbr>layers.<wbr>{0..10}.<wbr>self_attn" in page
    assert "<dt>proven only as part of the order</dt>\n<dd>all 88 names</dd>" in page
    assert str(breakable("beta 0.9, 1e-8 <b>")) == "beta 0.9, 1e-8 &lt;b&gt;"


def test_verdict_and_evidence_come_before_the_numbers_and_the_manifest_last():
    text = Outline(one_page()).text
    at = [
        text.index(title)
        for title in (
            "the tensor values rule out every other order",
            "Findings",
            "Evidence: adapter tensor against position",
            "The numbers",
            "coverage by layer",
            "format_version",
        )
    ]
    assert at == sorted(at)


def test_the_page_asks_for_nothing_and_runs_nothing():
    page = one_page()
    outline = Outline(page)
    assert not outline.all("script")
    assert not re.search(r"https?://|url\(|@import|//[a-z]", page.replace("http-equiv", ""))
    assert not any(name.startswith("on") for _, attrs in outline.tags for name in attrs)
    assert any("default-src 'none'" in (attrs.get("content") or "") for attrs in outline.all("meta"))


def test_every_picture_has_a_name_and_a_description():
    outline = Outline(one_page())
    pictures = outline.all("svg")
    assert len(pictures) == 8 + 5
    for attrs in pictures:
        assert attrs["role"] == "img"
        assert len(attrs["aria-labelledby"].split()) == 2


def test_every_heat_map_is_there_as_numbers_too():
    outline = Outline(one_page())
    assert len(outline.all("table")) == 4
    assert all(attrs.get("scope") in ("col", "row") for attrs in outline.all("th"))


def test_the_same_state_gives_the_same_bytes():
    assert html([subject("long_opt_step60")]) == one_page()


def test_several_states_show_what_changed():
    page = Outline(html([subject("long_opt_step300"), subject("long_opt_step2"), subject("long_opt_step60")]))
    for text in ("Over training", "Scale over training", "Update size over training", "Median of log10 v at step 300 less that at step 2."):
        assert text in page.text
    assert page.text.index("long_opt_step2/") < page.text.index("long_opt_step60/")
    assert len([attrs for attrs in page.all("a") if (attrs["href"] or "").startswith("#state-")]) == 3


def test_no_state_is_refused():
    with pytest.raises(ReadError, match="no state to draw"):
        html([])


def test_a_hostile_name_is_shown_and_not_obeyed():
    hurt = subject("long_opt_step60")
    first, *_ = hurt.state.parameters
    finding = Finding(rule="r", severity="error", text=HOSTILE, fix=HOSTILE, names=(HOSTILE,))
    ordering = Ordering(
        names=(), keys=(), source="given", rule=HOSTILE, verdict="partial", undecided=(HOSTILE,), rejected=({"rule": HOSTILE, "reason": HOSTILE},)
    )
    place = replace(hurt.numbers.parameters[0].place, layer=HOSTILE, kind=HOSTILE)
    numbers = replace(hurt.numbers, parameters=(replace(hurt.numbers.parameters[0], place=place, why_not=HOSTILE), *hurt.numbers.parameters[1:]))
    state = replace(hurt.state, findings=(finding,), ordering=ordering, optimizer_class=HOSTILE, adapter={"base_model": HOSTILE})
    matrix = replace(hurt.matrices[0], keys=(HOSTILE, *hurt.matrices[0].keys[1:]), title=HOSTILE)
    page = html([replace(hurt, path=HOSTILE, state=state, numbers=numbers, matrices=(matrix,))])
    page.encode("utf-8")
    outline = Outline(page)
    assert not outline.all("script")
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert outline.text.count('"><script>alert(1)</script>\\x1b[31m') > 10
    assert first in page or "{0..10}" in page


def test_without_a_verdict_the_page_says_so():
    bare = subject("long_opt_step2")
    assert "does not record how its names were determined" in html([replace(bare, state=replace(bare.state, ordering=None), matrices=())])


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)] if len(colour) == 7 else [int(c * 2, 16) / 255 for c in colour[1:]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1, 2], ids=["light", "dark", "print"])
def test_every_text_colour_has_contrast(scheme):
    style = re.search(r"<style>(.*?)</style>", one_page(), re.DOTALL).group(1)
    colours = dict(re.findall(r"--(\w+): (#\w+)", re.findall(r":root \{(.*?)\}", style, re.DOTALL)[scheme]))
    for ground in ("paper", "soft"):
        for text in ("ink", "dim", "good", "warning", "error", "note"):
            dark, light = sorted((luminance(colours[text]), luminance(colours[ground])))
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground)


@pytest.mark.parametrize(
    "picture",
    [
        lambda: svg.heat(Heat(title="t", says="s", unit="u", rows=(), columns=(), values=()), "m"),
        lambda: svg.heat(Heat(title="t", says="s", unit="u", rows=("a",), columns=("b",), values=((None,),)), "m"),
        lambda: svg.heat(Heat(title="t", says="s", unit="u", rows=("a",), columns=("b", "c"), values=((1.0, float("nan")),)), "m"),
        lambda: svg.ridges(Ridges(title="t", says="s", unit="u", start=0, width=1, rows=()), "m"),
        lambda: svg.lines(Lines(title="t", says="s", unit="u", x=(5.0, 5.0), series=(("a", (None, 1.0)),)), "m"),
        lambda: svg.matrix(Matrix(title="t", says="s", keys=("a", "b"), positions=(0, 1), scores=((1.0, None), (0.0, 1.0))), "m"),
    ],
)
def test_pictures_of_little_or_nothing_are_sound(picture):
    outline = Outline(picture())
    assert "nan" not in picture().split("<desc")[0]
    assert outline.all("svg")


def test_a_large_matrix_stays_a_small_picture():
    n = 300
    scores = tuple(tuple(9.0 if i == j else -5.0 for j in range(n)) for i in range(n))
    keys = tuple(f"layers.{i}.q_proj.lora_A.weight" for i in range(n))
    drawn = svg.matrix(Matrix(title="t", says="s", keys=keys, positions=tuple(range(n)), scores=scores), "m")
    assert drawn.count("<rect") < 2 * n
    assert len(drawn) < 100_000


def test_a_page_of_one_state_names_its_file_once_and_leads_to_every_section():
    text = html([subject("long_opt_step60")])
    assert text.count("long_opt_step60/lora.ostate.safetensors</h") == 1
    marks = re.findall(r'<a href="#([a-z]+-1)">', text)
    assert len(marks) >= 3
    assert all(f'id="{mark}"' in text for mark in marks)


def test_matrices_beyond_six_are_folded():
    one = subject("long_opt_step60")
    many = replace(one, matrices=(one.matrices[0],) * 8)
    text = html([many])
    assert "2 more matrices</summary>" in text
    assert text.index("2 more matrices") > text.index('id="s0m5-title"')
    assert "more matrices" not in html([replace(one, matrices=(one.matrices[0],) * 6)])


def test_two_points_are_dots_and_three_a_line():
    two = svg.lines(Lines(title="t", says="s", unit="u", x=(1.0, 2.0), series=(("a", (0.0, 1.0)),)), "m")
    three = svg.lines(Lines(title="t", says="s", unit="u", x=(1.0, 2.0, 3.0), series=(("a", (0.0, 1.0, 2.0)),)), "m")
    assert (two.count("<circle"), two.count("<polyline")) == (2 + 1, 0)
    assert (three.count("<circle"), three.count("<polyline")) == (3 + 1, 1)


def test_the_legend_of_dots_has_dots_and_an_eighth_series_hollow_ones():
    two = svg.lines(Lines(title="t", says="", unit="u", x=(1.0, 2.0), series=tuple((f"k{i}", (1.0, 2.0)) for i in range(8))), "m")
    assert two.count("<circle") == 8 * 3
    assert two.count('fill="none" stroke=') == 3
    assert "stroke-dasharray" not in two


def test_two_states_fill_the_width_and_three_stand_in_rows():
    def of(steps):
        return html([replace(one, path=f"s{step}") for step, one in steps.items()])

    both = {1: subject("llama_qv"), 2: subject("bias_all")}
    assert '<h2 id="side-by-side">State by state</h2><div class="figures">' in of(both).replace("\n", "")
    assert '<h2 id="side-by-side">State by state</h2><div class="rows">' in of({**both, 3: subject("llama_qv")}).replace("\n", "")


def test_the_two_factors_have_two_colours():
    drawn = svg.ridges(scale_ridges(subject("long_opt_step60").numbers), "m")
    assert 'class="ridge"' in drawn
    assert 'class="ridge b"' in drawn


def test_several_states_are_compared_in_a_table_and_each_is_folded():
    text = html([subject("long_opt_step60"), subject("long_opt_step2")])
    assert text.count("<summary>Summary, findings and plots</summary>") == 2
    table = text.partition("<table>")[2].partition("</table>")[0]
    assert all(f">{word}</t" in table for word in ("step", "lr", "chance", "warnings", "1 in 10^12", "60"))


def test_several_states_stand_side_by_side_in_the_same_colours():
    both = [subject("long_opt_step2"), subject("long_opt_step60")]
    shown = html(both).partition("State by state")[2].partition('id="state-1"')[0]
    assert shown.count("<svg") == 3 * 2
    low, high = svg.span_of([update_size(one.numbers) for one in both])
    brightest = max(both, key=lambda one: svg.span_of([update_size(one.numbers)])[1])
    for one in both:
        drawn = svg.heat(update_size(one.numbers), "m", (low, high))
        assert drawn.count(f'fill="{svg.RAMP[-1]}"><title>') == (1 if one is brightest else 0)


def test_kinds_stand_in_the_models_order():
    numbers = subject("long_opt_step60").numbers
    first = list(dict.fromkeys(one.place.kind for one in numbers.parameters))
    assert first != sorted(first)
    assert list(update_size(numbers).columns) == first
    assert [label for label, _ in scale_ridges(numbers).rows] == first


def test_what_the_probe_would_clamp_is_said_beside_the_scales():
    one = subject("long_opt_step60")
    lower = replace(one.numbers, caps={kind: cap - 3 for kind, cap in one.numbers.caps.items()})
    kind, share = clamped_kinds(lower)[0]
    assert share > 0.01
    scales = html([replace(one, numbers=lower)]).partition("<h3>Scale</h3>")[2].partition("<svg")[0]
    assert f"the probe clamps {kind} {100 * share:.3g} %" in scales
    assert clamped_kinds(one.numbers) == ()
    assert "the probe clamps" not in one_page()


@pytest.mark.parametrize(
    ("low", "high", "most", "wanted"),
    [
        (-7.99, 27.6, 3, [0, 10, 20]),
        (0.236, 0.561, 3, [0.3, 0.4, 0.5]),
        (2.03, 6.18, 3, [2.0, 4.0, 6.0][1:]),
        (2.78, 7.12, 5, [3, 4, 5, 6, 7]),
        (3.0, 3.0, 3, [3.0]),
    ],
)
def test_ticks_are_round_numbers(low, high, most, wanted):
    assert svg._ticks(low, high, most) == wanted


def test_the_colour_bar_marks_a_million_to_one_only_where_it_lies_in_the_range():
    def drawn(top):
        return svg.matrix(Matrix(title="t", says="s", keys=("a.0.x", "a.1.x"), positions=(0, 1), scores=((top, -9.0), (-9.0, top)), proven=13.8), "m")

    assert drawn(30.0).count('class="bar-mark"') == 1
    assert drawn(5.0).count('class="bar-mark"') == 0
