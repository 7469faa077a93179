"""The page of a view, in a browser: what is there, what a click and a key do, on a phone, in the dark, and how fast.

Needs Chromium or Chrome on the path; `.ci/run` installs it.
"""

import json
import re
import shutil

import jax
import jax.numpy as jnp
import pytest

import etpc
from docs.views import MODELS, view
from tests.marks import few

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PANELS = ("weights", "model", "patterns", "graph", "passes", "emitted")
OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-dev-shm-usage",
]


@pytest.fixture(scope="module")
def browser():
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser is installed: none of {', '.join(BROWSERS)} is on the path")
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright, of the extra `test`")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=OPTIONS)
        yield started
        started.close()


@pytest.fixture
def opened(browser, tmp_path):
    """Opens the page of a view; at the end, whether it raised an error, wrote to the console, or loaded anything."""
    said, contexts = [], []

    def open_page(shown, width=1280, height=900, **options):
        file = tmp_path / "page.html"
        shown.write(file)
        contexts.append(browser.new_context(viewport={"width": width, "height": height}, **options))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("console", lambda message: said.append(message.text))
        page.on("request", lambda r: said.append(r.url) if not r.url.startswith("file:") else None)
        page.goto(file.as_uri())
        page.record = shown.as_dict()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not said


def shown_of(name):
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"):
        found = view(name)
        found.as_dict()
    return found


def show(page, panel):
    page.click(f"#tab-{panel}")
    assert page.is_visible(f"#view-{panel}")
    assert page.locator("section:visible").count() == 1


def texts(page, selector):
    return page.locator(selector).all_text_contents()


def occurrences(record, w):
    """In how many things of each panel a weight occurs."""
    ops = record["weights"][w]["ops"]
    lines = lambda n: [
        re.sub(r"\bt\d+\b", "t", record["lines"][k]["text"])
        for k in record["programs"][n]["lines"]
        if w in record["lines"][k]["weights"]
    ]
    computations = record["emitted"]["hlo"]["computations"]
    return {
        "weights": len(ops),
        "model": sum(w in e["weights"] for e in record["step"]["equations"]),
        "patterns": sum(f["op"] in ops for f in record["patterns"]["immediate"]),
        "graph": sum(w in n["weights"] for n in record["graph"]["nodes"]),
        "passes": sum(set(lines(p["before"])) != set(lines(p["after"])) for p in record["passes"]),
        "emitted": sum(w in i["weights"] for c in computations for i in c["instructions"]),
    }


@pytest.mark.parametrize("name", few(MODELS, "alif"))
def test_each_panel_shows_what_the_record_has(opened, name):
    page = opened(shown_of(name))
    record = page.record
    assert page.title() == texts(page, "h1")[0] == record["title"]
    rows = [row.split("\t")[0] for row in page.locator("#view-weights tbody tr").all_inner_texts()]
    wanted = [w["path"] for w in record["weights"] for _ in w["ops"]]
    assert [re.sub(r" \(use \d+\)$", "", row) for row in rows] == wanted

    show(page, "model")
    equations = texts(page, "#view-model .equation > span:first-child")
    name_of = lambda part: (
        record["step"]["variables"][part]["name"] if isinstance(part, int) else part
    )
    said = ["".join(map(name_of, e["parts"])) for e in record["step"]["equations"]]
    assert set(said) <= set(equations)
    assert page.locator("#view-model .meets").count() == len({op["number"] for op in record["ops"]})
    assert "def __call__(self, x, " in " ".join(texts(page, "#view-model .source .row"))

    show(page, "patterns")
    assert page.locator("#view-patterns canvas").count() == 2
    assert page.locator("#view-patterns option").count() == len(record["patterns"]["immediate"])
    inked = """c => {const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
               return new Set(Array.from({length: d.length / 4}, (_, i) => d.slice(4 * i, 4 * i + 3).join())).size}"""
    assert all(page.evaluate(inked, c) > 2 for c in page.locator("canvas").element_handles())

    show(page, "graph")
    graph = record["graph"]
    assert page.locator("#view-graph .canvas .node").count() == len(graph["nodes"])
    assert page.locator("#view-graph .canvas .edge").count() == len(graph["edges"])
    assert texts(page, ".escape-path") == [e["text"] for e in record["escapes"]]

    show(page, "passes")
    assert page.locator("#stages button").count() == len(record["passes"])
    for n, each in enumerate(record["passes"]):
        if each["before"] != each["after"]:
            page.locator("#stages button").nth(n).click()
            before, after = (
                page.locator(f".pair > :{side}-child").all_text_contents()
                for side in ("first", "last")
            )
            lines = lambda n: [record["lines"][k]["text"] for k in record["programs"][n]["lines"]]
            assert [line for line in before if line] == lines(each["before"])
            assert [line for line in after if line] == lines(each["after"])
            assert page.locator(".pair .old, .pair .new").count() > 0
            proof = " ".join(texts(page, ".proof"))
            assert all(point["text"].replace("`", "") in proof for point in each["points"])

    show(page, "emitted")
    hlo = record["emitted"]["hlo"]
    products = page.locator("#view-emitted details").first.locator(".instruction:not(.head)")
    assert products.count() == len(hlo["products"])
    cards = dict(zip(texts(page, "#view-emitted dt"), texts(page, "#view-emitted dd"), strict=True))
    assert cards["products of matrices"] == str(len(hlo["products"]))
    assert cards["bytes of temporaries"] == f"{hlo['bytes']['temp']:,}"


def test_cycles_are_shown_where_a_compiler_says_them(opened):
    """Of instructions, and of the terms that they come from, which are in their order."""
    with jax.enable_x64(False):
        program = etpc.compile(jnp.ones(3), inputs=jnp.ones(3), state=jnp.zeros(3), step=leak)
        shown = program.view()
    hlo = shown.as_dict()["emitted"]["hlo"]
    assert hlo["unit"] is None
    hlo["unit"] = "cycles"
    instructions = [i for c in hlo["computations"] for i in c["instructions"]]
    for n, i in enumerate(instructions):
        i["cycles"] = 1000 + n * n
    page = opened(shown)
    show(page, "emitted")
    cards = dict(zip(texts(page, "#view-emitted dt"), texts(page, "#view-emitted dd"), strict=True))
    assert cards["cycles of a window"] == f"{sum(i['cycles'] for i in instructions):,}"
    heads, *rows = page.locator("#view-emitted .two table tr").all()
    assert texts(heads, "th")[-1] == "cycles"
    costs = [int(texts(row, "td")[-1].replace(",", "")) for row in rows]
    assert costs == sorted(costs, reverse=True)
    closed = page.locator("#view-emitted details:not([open]) > summary")
    while closed.count():
        closed.first.click()
    expect = pytest.importorskip("playwright.sync_api").expect
    listed = page.locator("#view-emitted .costed > .instruction:not(.head)")
    expect(listed).to_have_count(len(instructions))  # a list that opens is filled afterwards
    shown_costs = [texts(row, ":scope > span")[3] for row in listed.all()]
    assert sorted(shown_costs) == sorted(f"{i['cycles']:,}" for i in instructions)


def leak(w, x, h):
    h = 0.9 * h + w * x
    return h, h


def test_a_click_follows_a_weight_through_all_panels(opened):
    page = opened(shown_of("lif"))
    record, w = page.record, 0
    assert record["weights"][w]["path"] == ".hidden.weight"
    page.locator("#view-weights tbody tr").nth(w).click()
    assert page.locator('#list [aria-pressed="true"]').inner_text().split()[1] == ".hidden.weight"
    found = occurrences(record, w)
    assert min(found.values()) > 0
    for panel, count in found.items():
        show(page, panel)
        assert page.locator(f"#tab-{panel} .count").inner_text() == str(count)
        assert page.locator(f"#view-{panel} .on").count() >= 1
    assert page.locator("#view-graph .node.on .label").all_text_contents() == [".hidden.weight"]
    drawn = page.locator("#view-graph .edge.path").count()
    escapes = record["ops"][0]["escapes"]
    assert drawn == len({n for e in escapes for n in record["escapes"][e]["edges"]}) > 0
    assert page.locator("#view-model .equation.on").count() == found["model"]
    page.evaluate(
        "document.querySelectorAll('#view-emitted details').forEach(d => { d.open = true; })"
    )
    page.wait_for_timeout(100)
    opened_rows = (
        "#view-emitted details:not(:has(summary:text-matches('^Products'))) .instruction.on"
    )
    assert page.locator(opened_rows).count() == found["emitted"]

    show(page, "graph")  # one escape alone, by a click on it
    page.locator(".escape-path").last.click()
    last = record["escapes"][escapes[-1]]
    assert page.locator("#view-graph .edge.path").count() == len(last["edges"]) < drawn
    page.locator("#view-graph .node", has_text=".readout.weight").click()  # another weight
    assert page.locator("#followed code").first.inner_text() == ".readout.weight"
    page.locator("#followed button").click()
    assert not page.is_visible("#followed")
    assert page.locator(".on").count() == 0


@pytest.mark.slow
def test_lines_equations_and_instructions_lead_to_each_other(opened):
    page = opened(shown_of("lif"))
    show(page, "model")
    page.locator(".source .used", has_text="self.readout(spikes").click()
    chosen = texts(page, ".equation.chosen > span:first-child")
    assert any("dot_general" in text for text in chosen)
    page.locator(".equation.meets").first.click()
    assert "self.hidden(" in " ".join(texts(page, ".source .chosen"))
    show(page, "emitted")
    page.locator("#view-emitted .instruction .link", has_text="views.py").first.click()
    assert page.is_visible("#view-model")
    assert page.locator("#view-model .source .chosen").count() == 1


@pytest.mark.slow
def test_the_program_without_a_pass(opened):
    page = opened(shown_of("lru"))
    record = page.record
    n = next(n for n, p in enumerate(record["passes"]) if p["name"] == "holomorphic")
    show(page, "passes")
    page.locator("#stages button").nth(n).click()
    page.click("#without")
    lines = lambda n: [record["lines"][k]["text"] for k in record["programs"][n]["lines"]]
    shown = [
        page.locator(f".pair > :{side}-child").all_text_contents() for side in ("first", "last")
    ]
    for texts_of, program in zip(
        shown, (record["passes"][n]["without"], record["last"]), strict=True
    ):
        assert [text for text in texts_of if text] == lines(program)
        assert f"{record['programs'][program]['bytes']:,} bytes" in page.inner_text(".bytes")
    assert texts(page, ".heads > span") == ["All passes but this one", "All passes"]


def test_keys(opened):
    page = opened(shown_of("lif"))
    record, press = page.record, page.keyboard.press
    panel = lambda: (
        page.locator('[role="tab"][aria-selected="true"]').get_attribute("id").removeprefix("tab-")
    )
    for n, name in enumerate(PANELS, 1):
        press(str(n))
        assert panel() == name
    press("ArrowRight")
    assert panel() == PANELS[0]
    press("ArrowLeft")
    assert panel() == PANELS[-1]
    press("5")
    current = lambda: page.locator('#stages [aria-current="true"] span').first.inner_text()
    names = [p["name"] for p in record["passes"]]
    at = names.index(current())
    press("ArrowDown")
    assert current() == names[at + 1]
    press("ArrowUp")
    press("ArrowUp")
    assert current() == names[at - 1]
    press("ArrowDown")
    press("w")
    assert page.is_checked("#without")
    followed = lambda: page.locator("#followed code").first.inner_text()
    press("]")
    assert followed() == record["weights"][0]["path"]
    press("]")
    assert followed() == record["weights"][1]["path"]
    press("[")
    assert followed() == record["weights"][0]["path"]
    assert page.url.split("#")[1] == f"passes/{names[at]}?.hidden.weight"
    press("Escape")
    assert not page.is_visible("#followed")
    press("/")
    page.keyboard.type("readout 5")
    assert panel() == "passes"  # what is typed is no key
    page.fill("#find", "readout")
    assert page.locator("#list button:visible").count() == 1
    press("Escape")
    press("?")
    assert page.is_visible("#help")
    press("Escape")
    assert not page.is_visible("#help")
    press("4")
    move = lambda: page.locator("#view-graph .canvas svg > g").get_attribute("transform")
    whole = move()
    press("+")
    assert move() != whole
    press("0")
    assert move() == whole
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('#view-graph') !== null")


@pytest.mark.slow
def test_an_address_leads_to_a_pass_and_a_weight(opened):
    page = opened(shown_of("gru"))
    page.goto(page.url.split("#")[0] + "#passes/join_past?.cell.weight_hh")
    page.reload()
    assert page.is_visible("#view-passes")
    assert page.locator('#stages [aria-current="true"]').inner_text().startswith("join_past")
    assert page.locator("#followed code").first.inner_text() == ".cell.weight_hh"


def test_patterns_zoom_and_tell_what_is_under_the_pointer(opened):
    page = opened(shown_of("alif"))
    show(page, "patterns")
    canvas, read = page.locator("canvas").first, page.locator(".read").first
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 10, box["y"] + 10)
    assert read.inner_text() == "new .V[0] may depend on old .V[0]"
    page.mouse.move(box["x"] + 10, box["y"] + box["height"] / 2 - 10)
    assert read.inner_text() == "new .V[7] does not depend on old .V[0]"
    picture = lambda: page.evaluate("c => c.toDataURL()", canvas.element_handle())
    whole = picture()
    page.mouse.wheel(0, -400)
    page.wait_for_function(
        "whole => document.querySelector('canvas').toDataURL() !== whole", arg=whole
    )
    page.locator('#view-patterns [data-zoom="all"]').first.click()
    assert picture() == whole


def luminance(colour):
    parts = [int(n) / 255 for n in re.findall(r"\d+", colour)[:3]]
    r, g, b = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def test_light_and_dark_can_be_read(opened):
    """The scheme of the system, and the other one by a click; each text has the contrast that WCAG AA asks for."""
    for scheme in ("light", "dark"):
        page = opened(shown_of("lif"), color_scheme=scheme)
        page.locator("#view-weights tbody tr").first.click()
        ground = lambda page=page: luminance(
            page.evaluate("getComputedStyle(document.body).backgroundColor")
        )
        assert (ground() < 0.05) == (scheme == "dark")
        for panel in PANELS:
            show(page, panel)
            colours = page.evaluate(
                """panel => {
                    const isText = (e) =>
                        e.offsetParent && [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
                    const clear = (e) => /, 0\\)$|transparent/.test(getComputedStyle(e).backgroundColor);
                    const ground = (e) => clear(e) && e.parentElement ? ground(e.parentElement) : e;
                    const all = [...document.querySelectorAll(`#view-${panel} *`)].filter(isText);
                    const colours = (e) => [getComputedStyle(e).color, getComputedStyle(ground(e)).backgroundColor];
                    return all.map(e => [...colours(e), e.textContent]);
                }""",
                panel,
            )
            plain = [c for c in colours if all(re.match(r"rgba?\(", part) for part in c[:2])]
            assert plain
            for front, back, text in plain:
                light, dark = sorted([luminance(front), luminance(back)], reverse=True)
                assert (light + 0.05) / (dark + 0.05) >= 4.5, (panel, scheme, text, front, back)
        page.click("#theme")
        assert (ground() < 0.05) != (scheme == "dark")
        other = page.context.new_page()  # what a page stores reaches other processes later
        other.goto(page.url)
        chosen = "light" if scheme == "dark" else "dark"
        stored = lambda other=other: other.evaluate("localStorage.getItem('etpc-theme')")
        for _ in range(500):
            if stored() == chosen:
                break
            other.wait_for_timeout(20)
        assert stored() == chosen
        other.close()
        page.reload()
        assert (ground() < 0.05) != (scheme == "dark")


@pytest.mark.parametrize("name", few(MODELS, "lru"))
def test_a_phone_scrolls_down_alone(opened, name):
    page = opened(shown_of(name), width=360, height=740, has_touch=True)
    for follow in (False, True):
        if follow:
            page.locator("#list button").first.tap()
        for panel in PANELS:
            page.tap(f"#tab-{panel}")
            page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
            assert page.evaluate("document.documentElement.scrollWidth") <= 360, panel
            beyond = page.evaluate(
                """panel => [...document.querySelectorAll(`#view-${panel} *`)].filter(e => e.offsetParent
                     && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))""",
                panel,
            )
            assert not beyond, panel


NAMES = [
    "<script>window.evil = 1</script>",
    '</script><img src=x onerror="window.evil = 1">',
    "\"quoted\" & 'it'",
    "<!-- <script>",
    "</script onload=x <b",
    "a/b) grad c",
    "${window.evil = 1} {{data}} `",
]


def test_names_are_text(opened, tmp_path):
    """Of weights, inputs and states, in the title, and in lines of code."""
    weights = {name: jnp.full(3, 0.1) for name in NAMES}
    state = {name: jnp.zeros(3) for name in NAMES}

    def step(m, x, h):
        said = "</script><script>window.evil = 1</script>"
        h = {n: 0.9 * h[n] + m[n] * x["<b>x</b>"] for n in h}
        return {said: sum(h.values())}, h

    program = etpc.compile(weights, inputs={"<b>x</b>": jnp.zeros(3)}, state=state, step=step)
    page = opened(program.view(title=NAMES[0]))
    assert page.title() == NAMES[0]
    paths = [w["path"] for w in page.record["weights"]]
    assert sorted(paths) == sorted(f"[{name!r}]" for name in NAMES)
    for panel in PANELS:
        show(page, panel)
    page.locator("#list button").nth(1).click()
    for panel in PANELS:
        show(page, panel)
        assert (
            page.locator(f"#view-{panel} img, #view-{panel} b > b, #view-{panel} script").count()
            == 0
        )
    assert page.evaluate("window.evil") is None
    assert page.locator("script").count() == 2
    assert texts(page, "#list bdi") == paths
    assert "window.evil = 1</script>" in " ".join(texts(page, "#view-model .source"))
    terms = {
        t
        for c in page.record["emitted"]["hlo"]["computations"]
        for i in c["instructions"]
        for t in i["terms"]
    }
    assert {
        f"grad {path}" for path in paths
    } <= terms  # also where a name looks like the end of one
    page.locator("#view-graph .node.op", has_text="a/b").dispatch_event("click")
    assert page.locator("#followed code").first.inner_text() == "['a/b) grad c']"


def layers(count, each, size):
    """Weights, state and step of layers one behind the other, each with products and a bias."""
    weights = [{"w": [jnp.eye(size)] * each, "b": jnp.zeros(size)} for _ in range(count)]

    def step(weights, x, state):
        after = []
        for layer, h in zip(weights, state, strict=True):
            total = layer["b"]
            for k, w in enumerate(layer["w"]):
                total = total + w @ (x if k else jnp.tanh(h))
            x = jnp.tanh(0.9 * h + total)
            after.append(0.9 * h + total)
        return x, after

    return weights, dict(inputs=jnp.zeros(size), state=[jnp.zeros(size)] * count, step=step)


@pytest.mark.slow
def test_a_thousand_weights_in_48_layers_are_shown_within_two_seconds(opened):
    weights, options = layers(48, 20, 3)
    shown = etpc.compile(weights, **options).view(hlo=False)
    assert len(shown.as_dict()["weights"]) == 48 * 21 == 1008
    page = opened(shown)
    ready = "new Promise(done => requestAnimationFrame(() => setTimeout(() => done(performance.now()))))"
    timed = """async ([panel, weight]) => {
        const start = performance.now();
        if (weight === null) document.getElementById(`tab-${panel}`).click(); else follow(weight);
        return await %s - start;
    }"""
    taken = {}
    for _ in range(3):  # the least of three times, as other processes may have the processor
        page.goto(page.url.split("#")[0])
        page.reload()
        found = {"start": page.evaluate(ready)}
        assert page.locator("#view-weights tbody tr").count() == 1008
        for n, panel in enumerate(PANELS):
            found[panel] = page.evaluate(timed % ready, [panel, None])
            found[f"{panel}, a weight"] = page.evaluate(timed % ready, [panel, 500 + n])
        taken = {name: min(time, taken.get(name, time)) for name, time in found.items()}
    assert max(taken.values()) < 2000, json.dumps(taken)
    assert page.locator("#view-graph .node.on").count() == 1
    show(page, "passes")
    assert page.locator(".pair.on").count() >= 1
    assert page.locator(".fold").count() >= 1
    page.locator(".fold").first.click()
