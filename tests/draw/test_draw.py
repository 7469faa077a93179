"""Pictures of programs: what is in the graph is in the picture, once, legible, and right."""

import itertools
import json
import math
import re
from collections import Counter
from html import escape
from html.parser import HTMLParser
from xml.etree import ElementTree

import equinox as eqx
import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import pytest

import etpc
from etpc import draw, nn
from etpc.draw._layout import ADVANCE, BADGE, DETAIL, LABEL, PAD, layout
from etpc.draw._picture import picture, shortened

SVG = "{http://www.w3.org/2000/svg}"


class Deep(eqx.Module):
    """Layers of LIF neurons, each of which may read its own last spikes."""

    layers: list
    lif: nn.LIF
    readout: nn.LeakyRateReadout
    recurrent: bool = eqx.field(static=True)

    def __init__(self, depth, recurrent):
        keys = jax.random.split(jax.random.key(0), depth + 1)
        size = 3 + 3 * recurrent
        self.layers = [eqx.nn.Linear(size, 3, key=k) for k in keys[1:]]
        self.lif = nn.LIF(3, tau=10.0, R=10.0)
        self.readout = nn.LeakyRateReadout(3, 2, key=keys[0])
        self.recurrent = recurrent

    def init_state(self):
        return {"V": [self.lif.init_state() for _ in self.layers], "r": self.readout.init_state()}

    def __call__(self, x, state):
        after = []
        for layer, V in zip(self.layers, state["V"], strict=True):
            if self.recurrent:
                x = jnp.concatenate([x, self.lif.spike(V)])
            x, V = self.lif(layer(x), V)
            after.append(V)
        y, r = self.readout(x, state["r"])
        return y, {"V": after, "r": r}


KEY = jax.random.key(0)
CONV = {
    "conv": eqx.nn.Conv2d(1, 2, 3, padding=1, key=KEY),
    "out": eqx.nn.Linear(32, 2, key=KEY),
}


def cell(kind):
    return {"cell": kind(3, 4, key=KEY), "out": eqx.nn.Linear(4, 2, key=KEY)}


def call_conv(model, x, h):
    h = 0.9 * h + model["conv"](x)
    return model["out"](jnp.ravel(jnp.tanh(h))), h


def call_gru(model, x, h):
    h = model["cell"](x, h)
    return model["out"](h), h


def call_lstm(model, x, state):
    state = model["cell"](x, state)
    return model["out"](state[0]), state


def top_down(m, x, state):
    """Two layers, the second of which leads back to the first; a state that reads inputs alone."""
    a, b, filtered = state
    filtered = 0.9 * filtered + x
    a = 0.9 * a + m["a"] @ jnp.concatenate([filtered, jnp.tanh(b)])
    b = 0.9 * b + m["b"] @ jnp.tanh(a)
    only_input = m["c"] @ jnp.tanh(filtered)
    return m["out"] @ jnp.concatenate([a, b]), (a + only_input, b, filtered)


def adaptive(m, x, state):
    v, a = state
    v, a = 0.9 * v + m["w"] @ x + m["rec"] @ jnp.tanh(v) - a, 0.9 * a + jnp.tanh(v)
    return v, (v, a)


def entangled(m, x, state):
    """Three states that enter each other, in the last column."""
    a, b, c = state
    return (), (0.5 * a + m["w"] @ x + b + c, 0.5 * b + a + c, 0.5 * c + a + b)


def delayed(m, x, state):
    new = 0.5 * state[0] + m["w"] @ x + m["rec"] @ jnp.tanh(state[-1])
    return state[-1], (new, *state[:-1])


def odd(m, x, state):
    h = jnp.tanh(m["a<b&\"c'"] @ state["<state>"] + x["in&put"])
    return {'y"<': h}, {"<state>": h}


def compiled(step, shapes, *sizes, algo="d_rtrl"):
    """A program of an input of three numbers, with weights of ones and states of these sizes."""
    weights = {name: jnp.ones(shape) for name, shape in shapes.items()}
    state = tuple(Z(size) for size in sizes)
    return lambda: etpc.compile(weights, algo, inputs=Z(3), state=state, step=step)


def deep(depth, recurrent, algo="d_rtrl"):
    return lambda: etpc.compile(Deep(depth, recurrent), algo, inputs=Z(3), weights="all")


Z = jnp.zeros
TOP_DOWN = {"a": (4, 6), "b": (3, 4), "c": (4, 3), "out": (2, 7), "idle": 2}
RECURRENT = {"w": (4, 3), "rec": (4, 4)}
BUILD = {
    "three layers": deep(3, True),
    "ten layers": deep(10, False),
    "decay": deep(1, True, etpc.ES_D_RTRL(decay=0.9)),
    "gru": lambda: etpc.compile(cell(eqx.nn.GRUCell), inputs=Z(3), state=Z(4), step=call_gru),
    "lstm": lambda: etpc.compile(
        cell(eqx.nn.LSTMCell), inputs=Z(3), state=(Z(4), Z(4)), step=call_lstm
    ),
    "conv": lambda: etpc.compile(CONV, inputs=Z((1, 4, 4)), state=Z((2, 4, 4)), step=call_conv),
    "rtrl": deep(2, True, "rtrl"),
    "top down": compiled(top_down, TOP_DOWN, 4, 3, 3),
    "adaptive": compiled(adaptive, RECURRENT, 4, 4),
    "snap": compiled(adaptive, RECURRENT, 4, 4, algo=etpc.SnAp(1)),
    "entangled": compiled(entangled, {"w": (4, 3)}, 4, 4, 4),
    "delayed": compiled(delayed, {"w": (3, 3), "rec": (3, 3)}, *[3] * 9),
    "odd": lambda: etpc.compile(
        {"a<b&\"c'": jnp.eye(3)}, inputs={"in&put": Z(3)}, state={"<state>": Z(3)}, step=odd
    ),
    "no output": compiled(lambda m, x, s: ((), (s[0] * m["w"],)), {"w": 3}, 3),
}
PROGRAMS = {}


@pytest.fixture(params=BUILD)
def program(request):
    return built(request.param)


def built(name):
    if name not in PROGRAMS:
        PROGRAMS[name] = BUILD[name]()
    return PROGRAMS[name]


def parsed(program):
    return ElementTree.fromstring(draw.to_svg(program))


def key(name):
    return ":".join(name)


def edges_of(svg):
    """The edges of a picture with the classes that say what the traces do with them."""
    found = {}
    for g in svg.iter(f"{SVG}g"):
        if "data-from" in g.attrib:
            pair = g.attrib["data-from"], g.attrib["data-to"]
            assert pair not in found
            found[pair] = g.attrib["class"].removeprefix("edge ")
    return found


@pytest.mark.slow
def test_every_node_is_there_once(program):
    shown = Counter(
        g.attrib["data-node"] for g in parsed(program).iter(f"{SVG}g") if "data-node" in g.attrib
    )
    graph = program.graph
    wanted = [n for n in graph if n[0] != "parameter" or not graph.out_degree(n)]
    assert shown == Counter(map(key, wanted))


def test_every_edge_is_there_once_or_its_way_through_a_state_is(program):
    graph = program.graph
    shown = edges_of(parsed(program))
    wanted = {(a, b): cut for a, b, cut in graph.edges(data="cut") if a[0] != "parameter"}
    assert shown.keys() <= {(key(a), key(b)) for a, b in wanted}
    for (a, b), cut in wanted.items():
        kind = shown.get((key(a), key(b)))
        if kind is not None:
            assert (kind == "kept") <= (not cut)
            continue
        assert a[0] == "op"
        assert b[0] in ("op", "output")
        states = [s for s in graph.successors(a) if s[0] == "state" and graph.has_edge(s, b)]
        assert any(graph.edges[s, b]["cut"] == cut for s in states)


def test_an_escape_is_drawn_where_one_is_reported(program):
    """An edge into an operation is an escape if and only if a path of `op.escapes` passes there."""
    plan = program.plan
    text = " ; ".join(path for p in plan.ops for path in p.escapes)
    for (a, b), kind in edges_of(parsed(program)).items():
        if not b.startswith("op:"):
            continue
        start = (
            f"hidden {a[6:]}" if a.startswith("state:") else f"the output of {a[3:].split('#')[0]}"
        )
        reported = f"{start} -> {b[3:].rsplit('#', 1)[0]} -> " in text
        assert (kind == "escape") == reported


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("gru", {"kept": 9, "escape": 1}),
        ("lstm", {"kept": 12, "escape": 1}),
        ("top down", {"kept": 12, "cut": 2, "escape": 2}),
        ("adaptive", {"kept": 9, "escape": 1}),
        ("rtrl", {"kept": 26}),
    ],
)
def test_the_kinds_of_edges_of_known_models(name, kinds):
    assert Counter(edges_of(parsed(built(name))).values()) == kinds


KNOWN = {
    "top down": [
        ("state:[2]", "['a']", "cut"),
        ("state:[2]", "['c']", "cut"),
        ("state:[1]", "['a']", "escape"),
        ("state:[0]", "['b']", "escape"),
        ("state:[0]", "['out']", "kept"),
        ("state:[0]", "state:[0]", "kept"),
    ],
    "snap": [  # what a block of few steps leaves out is drawn
        ("state:[0]", "state:[1]", "escape"),
        ("state:[0]", "state:[0]", "escape"),
        ("state:[1]", "state:[1]", "kept"),  # diagonal, and in a block only as whole
    ],
}


@pytest.mark.parametrize("name", KNOWN)
def test_which_edges_of_a_known_model_are_cut(name):
    found = edges_of(parsed(built(name)))
    ops = {p.path: f"op:{p.path}#{p.op.number}" for p in built(name).plan.ops}
    assert {(a, b, found[a, ops.get(b, b)]) for a, b, _ in KNOWN[name]} == set(KNOWN[name])


def test_exact_and_approximate_differ_without_colour():
    signs = {}
    for g in parsed(built("ten layers")).iter(f"{SVG}g"):
        if g.attrib.get("data-node", "").startswith("op:"):
            sign = next(t.text for t in g.iter(f"{SVG}text") if t.attrib["class"] == "sign")
            signs[g.attrib["data-node"].split("#")[0][3:]] = sign
    for p in built("ten layers").ops:
        assert signs[p.path] == ("=" if p.exact else "≈")
    assert set(signs.values()) == {"=", "≈"}


def test_boxes_do_not_overlap_and_hold_their_texts(program):
    placed = layout(picture(program))
    for a, b in itertools.combinations(placed.boxes, 2):
        apart_x = a.x + a.width <= b.x or b.x + b.width <= a.x
        apart_y = a.y + a.height <= b.y or b.y + b.height <= a.y
        assert apart_x or apart_y
    for box in placed.boxes:
        assert box.x >= 0
        assert box.y >= 0
        assert box.x + box.width <= placed.width
        assert box.y + box.height <= placed.height
        text = ADVANCE * max(LABEL * len(box.label), DETAIL * len(box.detail))
        signs = BADGE if box.node.kind == "op" or box.node.loop else 0
        assert text + signs + PAD <= box.width


def points(path):
    """Points along the `d` of a path; a line is a curve of degree one."""
    found = []
    t = np.linspace(0, 1, 21)[1:, None]
    for numbers in re.findall(r"[MLC] ?([^MLC]*)", path):
        ends = [*found[-1:], *np.array(numbers.split(), float).reshape(-1, 2)]
        n = len(ends) - 1
        found += [*sum(math.comb(n, k) * (1 - t) ** (n - k) * t**k * p for k, p in enumerate(ends))]
    return found


def test_arrows_pass_under_no_text_and_join_their_boxes(program):
    placed = layout(picture(program))
    boxes = {box.node.name: box for box in placed.boxes}
    assert len(placed.arrows) == len(picture(program).edges)
    for arrow in placed.arrows:
        path = points(arrow.path)
        for x, y in path:
            assert -0.1 <= x <= placed.width + 0.1
            assert -0.1 <= y <= placed.height + 0.1
            inside = [
                name
                for name, box in boxes.items()
                if box.x + 1 < x < box.x + box.width - 1 and box.y + 1 < y < box.y + box.height - 1
            ]
            assert not inside, (arrow.edge, inside)
        for (x, y), name in ((path[0], arrow.edge.source), (arrow.tip, arrow.edge.target)):
            box = boxes[name]
            at_side = min(abs(x - box.x), abs(x - box.x - box.width)) < 0.1
            at_end = min(abs(y - box.y), abs(y - box.y - box.height)) < 0.1
            assert at_side or at_end
            assert box.x - 0.1 <= x <= box.x + box.width + 0.1
            assert box.y - 0.1 <= y <= box.y + box.height + 0.1


@pytest.mark.slow
def test_the_same_model_gives_the_same_text(program):
    again = next(build for name, build in BUILD.items() if PROGRAMS.get(name) is program)()
    assert again is not program
    assert draw.to_svg(again) == draw.to_svg(program)
    assert draw.to_html(again) == draw.to_html(program)


def test_nothing_is_loaded_from_elsewhere(program):
    text = draw.to_html(program).replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?:|url\(|@import|src=|href=", text)


def test_light_and_dark():
    text = draw.to_svg(built("gru"))
    light, dark = text.split("@media (prefers-color-scheme: dark)")
    rule = re.compile(r"^\.etpc (.*?) \{ (.*) \}$", re.MULTILINE)
    of_light = {s: c for s, c in rule.findall(light) if "#" in c}
    of_dark = {s: c for s, c in rule.findall(dark) if "#" in c}
    assert of_light.keys() == of_dark.keys()
    assert all(of_light[s] != of_dark[s] for s in of_light)


def test_hovering_tells_the_numbers():
    titles = {
        g.attrib["data-node"]: g.find(f"{SVG}title").text
        for g in parsed(built("decay")).iter(f"{SVG}g")
        if "data-node" in g.attrib
    }
    p = built("decay").ops[0]
    told = titles[f"op:{p.path}#{p.op.number}"]
    for text in (
        p.path,
        "dot_general at test_draw.py:",
        "6 + 3 of float64: 80 bytes",
        "decay 0.9",
        *p.escapes,
    ):
        assert text in told
    assert p.trace_bytes == 80
    assert "/" not in told.split(" at ")[1].splitlines()[0]
    assert "float64[3]" in titles["state:['V'][0]"]


def test_long_paths_are_shortened_in_the_middle():
    assert shortened("abcdefghij", 10) == "abcdefghij"
    assert shortened("abcdefghijk", 10) == "abcd…ghijk"
    long = "a_name_that_is_much_longer_than_a_box_may_be_wide"
    program = etpc.compile(
        {long: jnp.ones(3)}, inputs=Z(3), state=Z(3), step=lambda m, x, s: (s, s * m[long] + x)
    )
    text = draw.to_svg(program)
    shown = [t.text for t in ElementTree.fromstring(text).iter(f"{SVG}text")]
    assert shortened(f"['{long}']", 26) in shown
    assert f"['{long}']" not in shown
    assert f"<title>['{long}']" in text


def test_html_shows_what_print_shows(program):
    page = draw.to_html(program)
    assert page.count("<svg ") == 1
    assert f"<pre>{escape(str(program))}</pre>" in page


def test_names_are_escaped():
    """No name is read as markup, in any format."""
    page = draw.to_html(built("odd"))
    assert "<state>" not in page
    assert "&lt;state&gt;" in page
    names = ["<script>&\"'`]]>-->", "%%{init}%%\n\x07", '"] --> X["evil', "</style>"]
    ones = {name: jnp.ones(3) for name in names}
    step = lambda m, x, h: ({n: 0.9 * h[n] + m[n] * x for n in h},) * 2
    program = etpc.compile(ones, inputs=jnp.ones(3), state=ones, step=step)
    texts = {e.text for e in ElementTree.fromstring(draw.to_svg(program)).iter()}
    assert {f"[{name!r}]" for name in names} <= texts
    page = HTMLParser()
    tags, data = [], []
    page.handle_starttag = lambda tag, attributes: tags.append(tag)
    page.handle_data = data.append
    page.feed(draw.to_html(program))
    assert tags.count("script") == 0
    assert tags.count("style") == 2
    assert all(any(repr(name) in text for text in data) for name in names)


def test_notebooks_show_a_program():
    program = built("odd")
    assert program._repr_html_() in draw.to_html(program)
    assert program.draw()._repr_svg_() == draw.to_svg(program)


@pytest.mark.parametrize(
    ("ending", "start"),
    [
        *((".svg", "<svg"), (".html", "<!DOCTYPE"), (".SVG", "<svg")),
        *((".graphml", "<graphml"), (".dot", "digraph {"), (".json", "{")),
    ],
)
def test_files(tmp_path, ending, start):
    path = tmp_path / f"picture{ending}"
    path.write_text("before")
    assert built("gru").draw(path) is None
    assert path.read_text(encoding="utf-8").startswith(start)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_file_of_another_format(tmp_path):
    with pytest.raises(etpc.InputError, match=r"picture\.png.*\.svg, \.html"):
        draw.write(built("gru"), tmp_path / "picture.png")
    assert not list(tmp_path.iterdir())


def test_the_graph_for_other_programs(tmp_path):
    """Each format has all nodes, their data, and the edges that are cut."""
    program = built("gru")
    names = {" ".join(node) for node in program.graph}
    cut = {(" ".join(a), " ".join(b)): c for a, b, c in program.graph.edges(data="cut")}
    assert set(cut.values()) == {True, False}
    program.draw(tmp_path / "graph.graphml")
    program.draw(tmp_path / "graph.json")
    data = json.loads((tmp_path / "graph.json").read_text())
    assert data.pop("schema") == "etpc-graph/1"
    for graph in (
        nx.read_graphml(tmp_path / "graph.graphml"),
        nx.node_link_graph(data, edges="edges"),
    ):
        assert set(graph.nodes) == names
        assert {(a, b): c for a, b, c in graph.edges(data="cut")} == cut
        for node, fields in program.graph.nodes(data=True):
            assert graph.nodes[" ".join(node)] == fields
    dot = draw.to_dot(program).splitlines()
    assert (dot[0], dot[-1]) == ("digraph {", "}")
    assert len(dot) == 3 + len(names) + len(cut)
    for (a, b), is_cut in cut.items():
        assert f'  "{a}" -> "{b}"{" [style=dashed]" if is_cut else ""};' in dot
