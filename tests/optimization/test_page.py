import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.optimization.evaluation.metrics import Metric
from services.optimization.jobs.job import Job
from services.optimization.page import Story, render
from services.optimization.page.rules import Precision, precision_of
from services.optimization.page.tradeoff import Point, front_of
from services.optimization.page.wording import number, signed
from services.optimization.recipe import Gates, Objective, Step
from services.optimization.report import Candidate, Interval, Measurement, Quality, Report, Verdict, WorkloadResult
from services.optimization.spec import Spec

BEGIN = datetime(2026, 3, 1, 12, tzinfo=UTC)
STORY = Story("0af3", "sst2@3", BEGIN, published="sst2@4", state="SUCCEEDED", started=BEGIN, ended=BEGIN, seed=7)
NOTHING = Story("0af3", "sst2@3", BEGIN, state="REJECTED", started=BEGIN, ended=BEGIN)
TEXT_SHAPES = ((1, 16), (8, 16), (32, 16), (1, 128), (8, 128))
ENVIRONMENT = {"cpu_model": "Some processor", "cpu_features": ["avx2", "avx512f"], "threads": 1, "libraries": {"torch": "2.13.0"}}
DATA = {"evaluation": {"examples": 400, "labelled": True, "digest": "ab12"}, "calibration": {"examples": 64, "digest": "cd34"}}


def interval(estimate: float, half: float = 0.0) -> Interval:
    return Interval(estimate=estimate, low=estimate - half, high=estimate + half)


def measurement(size_megabytes: float, faster: float = 1.0, shapes: tuple[tuple[int, int], ...] = TEXT_SHAPES) -> Measurement:
    workloads = []
    for rows, tokens in shapes:
        p50_ms = (2 + 0.05 * rows * max(tokens, 8)) / faster
        workloads.append(
            WorkloadResult(
                batch_rows=rows,
                tokens=tokens,
                p50_ms=p50_ms,
                p90_ms=1.1 * p50_ms,
                p99_ms=1.4 * p50_ms,
                rows_per_second=1e3 * rows / p50_ms,
                samples=40,
            )
        )
    return Measurement(
        size_bytes=int(size_megabytes * 1e6), load_seconds=0.4, memory_bytes=int(2e6 * size_megabytes), workloads=tuple(workloads)
    )


def accuracy(lost: float, half: float = 0.012, metric: Metric = Metric.ACCURACY) -> Quality:
    return Quality(
        metric=metric,
        original=interval(0.918, 0.02),
        candidate=interval(0.918 - lost, 0.02),
        difference=interval(-lost, half),
        p_value=0.12,
        test="McNemar, exact",
        examples=400,
    )


def candidate(
    name: str, techniques: str, verdict: Verdict, speed: float, ratio: float, lost: float, notes: dict[str, Any] | None = None, **more: Any
) -> Candidate:
    return Candidate(
        name=name,
        steps=tuple(Step(technique=technique, parameters={"per_channel": True}) for technique in techniques.split(",")),
        verdict=verdict,
        reason=f"{name} was judged {verdict} for its figures",
        **{
            "measurement": measurement(90.9 / ratio, speed),
            "fidelity": interval(1 - lost, 0.004),
            "min_fidelity": 0.61,
            "speedup": interval(speed, 0.05 * speed),
            "size_ratio": ratio,
            "notes": notes or {},
            "optimization_seconds": 31.0,
            "qualities": (accuracy(lost),),
            **more,
        },
    )


def infeasible(name: str) -> Candidate:
    reason = "torch.jit.script cannot compile this model: source of BertConfig.__init__"
    return Candidate(
        name=name, steps=(Step(technique="torchscript", parameters={"mode": "script"}),), verdict=Verdict.INFEASIBLE, reason=reason
    )


INT8_NOTES = {
    "steps": [
        {"technique": "export_onnx", "opset": 17, "fused": {}, "verified_shapes": [[1, 8], [3, 40]]},
        {
            "technique": "dynamic_int8",
            "excluded": ["/layer.0/ffn"],
            "sensitivity": {f"/layer.{index}/ffn": 0.2 / (index + 1) for index in range(24)},
            "trials": [{"excluded": 0, "fidelity": 0.981}, {"excluded": 1, "fidelity": 0.995, "kept": True}],
        },
    ],
    "fidelity": {"changed_predictions": 3},
}
TRAINING_NOTES = {
    "steps": [
        {
            "technique": "distill",
            "curves": {
                "loss": [[step, 2.0 / (1 + step / 50)] for step in range(0, 400, 4)],
                "validation_loss": [[step, 2.2 / (1 + step / 60)] for step in range(0, 400, 40)],
                "learning_rate": [[step, 1e-4 * (1 - step / 400)] for step in range(0, 400, 8)],
            },
            "stopped": "the validation loss did not fall for 3 evaluations",
            "examples": 1200,
        }
    ]
}
REPORT = Report(
    original=measurement(90.9),
    candidates=(
        candidate("onnx-int8", "export_onnx,dynamic_int8", Verdict.ACCEPT, 3.41, 3.97, 0.004, INT8_NOTES),
        candidate("student", "distill", Verdict.INCONCLUSIVE, 1.9, 1.8, 0.009, TRAINING_NOTES),
        candidate("bf16", "bf16", Verdict.REJECT_NO_GAIN, 0.71, 1.99, 0.0),
        candidate("int4", "export_onnx,int4_weight_only", Verdict.REJECT_ACCURACY, 0.8, 6.2, 0.041),
        infeasible("script"),
    ),
    chosen="onnx-int8",
    environment=ENVIRONMENT,
    metric=Metric.ACCURACY,
    data=DATA,
)


class Read(HTMLParser):
    """Visible text, tags with their attributes, ids, and the scripts; complains of what is not closed."""

    VOID = frozenset({"meta", "br", "hr", "img", "input", "link"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def headline(self) -> str:
        return self.text.split("Optimization report")[0].strip()

    def count(self, tag: str) -> int:
        return sum(1 for found, _ in self.tags if found == tag)


@pytest.fixture(scope="module")
def page() -> str:
    return render(STORY, REPORT)


def test_published_headline_tells_what_it_brings_and_costs(page: str) -> None:
    assert Read(page).headline == "sst2@4 was published: 3.41× as fast, 3.97× smaller, −0.40 points of accuracy."


def test_headline_says_slower_larger_and_worse_plainly() -> None:
    worse = candidate("big", "torchscript", Verdict.ACCEPT, 0.5, 0.5, 0.03)
    told = Read(render(STORY, REPORT.model_copy(update={"candidates": (worse,), "chosen": "big"})))
    assert told.headline == "sst2@4 was published: slower: 0.500× the speed, 2.00× larger, −3.00 points of accuracy."
    assert "Slower than the original" in told.text
    assert "Larger than the original" in told.text


def test_no_difference_is_called_none() -> None:
    same = candidate("same", "torchscript", Verdict.ACCEPT, 1.0, 1.0, 0.0)
    told = Read(render(STORY, REPORT.model_copy(update={"candidates": (same,), "chosen": "same"})))
    assert told.headline == "sst2@4 was published: no change of speed shown, same size, 0.00 points of accuracy."
    assert "no difference in speed was shown" in told.text


def test_nothing_published_tells_why_and_the_best_found() -> None:
    told = Read(render(NOTHING, REPORT.model_copy(update={"candidates": REPORT.candidates[1:], "chosen": ""})))
    assert told.headline == "Nothing was published: none of the 4 candidates passed its gates."
    assert "1 loses more quality than the gates allow, 1 gains less than the gates ask for" in told.text
    assert "The best found is student, which is not published: student was judged INCONCLUSIVE" in told.text


def test_accepted_yet_unpublished_is_no_publication() -> None:
    story = Story("0af3", "sst2@3", BEGIN, state="FAILED", failure="the disk is full")
    told = Read(render(story, REPORT))
    assert told.headline.startswith("onnx-int8 passed its gates but was not published")
    assert "The job ended early: the disk is full" in told.text


def test_every_candidate_stands_with_its_figures_reason_and_recipe(page: str) -> None:
    text = Read(page).text
    for found in REPORT.candidates:
        assert found.reason in text
        assert json.dumps([step.model_dump() for step in found.steps], indent=2) in page.replace("&#34;", '"')
    assert "91.80 % → 91.40 %" in text
    assert "−0.40 −1.60 to 0.80" in text.replace("+", "")
    assert "p = 0.12" in text
    assert "22.9 MB 3.97× smaller" in text


def test_notes_are_shown_by_their_kind(page: str) -> None:
    text = Read(page).text
    assert "the 20 highest of 24" in text
    assert "/layer.0/ffn (kept in high precision)" in text
    assert "/layer.19/ffn" in text
    assert "/layer.20/ffn" not in text
    assert "excluded fidelity kept" in text
    assert "0.9950 yes" in text
    assert "validation_loss" in text
    assert "the validation loss did not fall for 3 evaluations" in text
    assert "evaluation" in text
    assert "ab12" in text


def test_rules_of_thumb_stand_beside_the_figures(page: str) -> None:
    text = Read(page).text
    assert "onnx-int8 INT8 0.25× | 0.252× 4× | 3.41× 2 % | 0.40 points accuracy" in text.replace("+", "")
    assert "no 8-bit dot product" in text
    assert "does not compute in bfloat16" in text
    assert "Measured is the whole chain export_onnx → int4_weight_only" in text
    assert "Weight-only INT4 reads fewer bytes" in text


@pytest.mark.parametrize(("features", "told"), [(["avx512_vnni"], "has 8-bit dot products"), (["avx2"], "no 8-bit dot product")])
def test_rules_look_at_the_processor(features: list[str], told: str) -> None:
    slow = candidate("int8", "dynamic_int8", Verdict.REJECT_NO_GAIN, 1.2, 3.9, 0.004)
    report = REPORT.model_copy(update={"candidates": (slow,), "chosen": "", "environment": {"cpu_features": features}})
    assert told in Read(render(NOTHING, report)).text


def test_plots_have_titles_and_are_there(page: str) -> None:
    read = Read(page)
    plots = [attributes for tag, attributes in read.tags if tag == "svg" and attributes.get("class") == "plot"]
    assert len(plots) == 2 + 2 + 2  # trade-offs; lengths; loss and learning rate
    ids = [attributes["id"] for _, attributes in read.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {plot["aria-labelledby"] for plot in plots} <= set(ids)
    assert "speed-up over the original: 5 models, " in read.text


def test_every_plotted_reference_leads_to_an_id_of_the_page(page: str) -> None:
    ids = set(re.findall(r' id="([^"]+)"', page))
    assert {*re.findall(r'href="#([^"]+)"', page), *re.findall(r"url\(#([^)]+)\)", page)} <= ids


def test_page_needs_no_network(page: str) -> None:
    read = Read(page)
    names = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert set(re.findall(r"[a-z]+://[^\"' )]+", page)) <= names
    assert {attributes["href"] for _, attributes in read.tags if attributes.get("href")} == {
        f"#candidate{index + 1}" for index in range(len(REPORT.candidates))
    }
    assert not any("src" in attributes for _, attributes in read.tags)
    assert not {"link", "img", "iframe", "object"} & {tag for tag, _ in read.tags}
    assert [attributes["type"] for tag, attributes in read.tags if tag == "script"] == ["application/json"]


def test_page_holds_the_report(page: str) -> None:
    (script,) = Read(page).scripts
    assert Report.model_validate_json(script) == REPORT


def test_same_report_renders_to_the_same_page_in_any_thread(page: str) -> None:
    with ThreadPoolExecutor(3) as threads:
        assert set(threads.map(lambda _: render(STORY, REPORT), range(3))) == {page}


HOSTILE = "</script><script>alert(1)</script><!-- --> \"'>&<b onmouseover=alert(1)> $x_$ {{ 7*7 }} \x07 \U0001f600 \u2028"


def test_hostile_texts_are_texts() -> None:
    notes = {
        "steps": [{"technique": HOSTILE, HOSTILE: HOSTILE, "curves": {HOSTILE: [[0, 1], [1, 2]]}, "sensitivity": {HOSTILE: 1.0}}],
        HOSTILE: [{HOSTILE: HOSTILE}],
        "nested": {HOSTILE: {HOSTILE: [HOSTILE]}},
    }
    bad = candidate(
        HOSTILE, "export_onnx", Verdict.ACCEPT, 2, 2, 0.01, notes, qualities=(accuracy(0.01).model_copy(update={"test": HOSTILE}),)
    )
    bad = bad.model_copy(update={"steps": (Step(technique=f"{HOSTILE}int8", parameters={HOSTILE: HOSTILE}),), "reason": HOSTILE})
    report = REPORT.model_copy(
        update={"candidates": (bad,), "chosen": HOSTILE, "environment": {HOSTILE: HOSTILE}, "data": {HOSTILE: HOSTILE}}
    )
    story = Story(HOSTILE, HOSTILE, BEGIN, published=HOSTILE, state=HOSTILE, failure=HOSTILE, curves={HOSTILE: [(0.0, 1.0), (1.0, 2.0)]})
    page = render(story, report)
    read = Read(page)
    assert [attributes["type"] for tag, attributes in read.tags if tag == "script"] == ["application/json"]
    assert read.count("b") == 0
    assert not any(name.startswith("on") for _, attributes in read.tags for name in attributes)
    assert "<!--" not in page
    assert "{{ 7*7 }}" in read.text
    assert Report.model_validate_json("".join(read.scripts)) == report


def test_no_candidates() -> None:
    told = Read(render(NOTHING, Report(original=Measurement(size_bytes=9))))
    assert told.headline == "Nothing was published: the job has no candidates."
    assert told.count("svg") == 0


def test_images_have_no_length() -> None:
    shapes = ((1, 0), (16, 0))
    found = candidate("cnn", "qat", Verdict.ACCEPT, 2, 3.9, 0.0, measurement=measurement(1, 2, shapes))
    told = Read(render(STORY, Report(original=measurement(4, shapes=shapes), candidates=(found,), chosen="cnn"))).text
    assert "tokens: " not in told
    assert "Every row" in told
    assert "× 0" not in told


def test_perplexity_is_better_when_lower() -> None:
    quality = Quality(
        metric=Metric.PERPLEXITY,
        original=interval(20, 1),
        candidate=interval(21, 1),
        difference=interval(0.05, 0.01),
        p_value=1e-9,
        test="paired bootstrap",
        examples=500,
    )
    found = candidate("lm", "dynamic_int8", Verdict.ACCEPT, 2, 3.9, 0.0, qualities=(quality,))
    read = Read(render(STORY, Report(original=measurement(4), candidates=(found,), chosen="lm", metric=Metric.PERPLEXITY)))
    assert "+5.00 % of perplexity" in read.headline
    assert ("div", {"class": "bad"}) in read.tags
    assert "perplexity at most 5 % worse" in read.text
    assert "5.00 % perplexity" in read.text
    assert "p < 0.001" in read.text


def test_thirty_candidates_have_a_bounded_number_of_plots() -> None:
    verdicts = [verdict for verdict in Verdict if verdict is not Verdict.INFEASIBLE]
    many = [candidate(f"candidate-{i}", "distill", verdicts[i % 4], 0.5 + i / 7, 1 + i / 9, i / 900, TRAINING_NOTES) for i in range(30)]
    page = render(NOTHING, REPORT.model_copy(update={"candidates": tuple(many), "chosen": ""}))
    read = Read(page)
    plots = [attributes for tag, attributes in read.tags if tag == "svg" and attributes.get("class") == "plot"]
    assert len(plots) <= 20
    assert page.count("<td>learning_rate</td>") == 30
    assert "25 more candidates are in the tables below" in read.text


def test_gates_are_told() -> None:
    story = Story("j", "m@1", BEGIN, gates=Gates(max_loss=0.02, min_fidelity=0.9, min_gain=1.5, min_examples=50), objective=Objective.SIZE)
    text = Read(render(story, REPORT)).text
    assert "fidelity at least 0.9, accuracy at most 2 points lost, size ratio at least 1.5, at least 50 examples" in text


def test_story_of_a_job() -> None:
    spec = Spec(source="sst2", seed=5, objective=Objective.LATENCY)
    job = Job(id="j", request_id="r", fingerprint="f", spec="{}", source="sst2@3", created=BEGIN, published="sst2@4")
    story = Story.of(job, spec)
    assert (story.source, story.published, story.seed, story.objective) == ("sst2@3", "sst2@4", 5, Objective.LATENCY)


@pytest.mark.parametrize("module", ["services.optimization.page", "services.optimization.job_servicer"])
def test_importing_does_not_import_what_draws(module: str) -> None:
    program = f"import sys, {module}; print(*(name for name in ('matplotlib', 'jinja2') if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == []


@pytest.mark.parametrize(
    ("value", "told"),
    [(0, "0"), (3.14159, "3.14"), (-0.00042, "−0.000420"), (12345, "12\u202f345"), (1e9, "1.00e+09"), (2e-6, "2.00e−06")],
)
def test_numbers_have_three_digits(value: float, told: str) -> None:
    assert number(value) == told


@pytest.mark.parametrize(("value", "told"), [(0.5, "+0.50"), (-0.5, "−0.50"), (-0.001, "0.00"), (0.0, "0.00")])
def test_what_rounds_to_zero_has_no_sign(value: float, told: str) -> None:
    assert signed(value, 2) == told


@pytest.mark.parametrize(
    ("technique", "parameters", "precision"),
    [
        ("dynamic_int8", {}, Precision.INT8),
        ("qat", {}, Precision.INT8),
        ("int4_weight_only", {}, Precision.INT4),
        ("int4_weight_only", {"bits": 8}, Precision.INT8),
        ("bf16", {}, Precision.BF16),
        ("fp16", {}, Precision.FP16),
        ("aotinductor", {"dtype": "bfloat16"}, Precision.BF16),
        ("aotinductor", {"dtype": "float32"}, None),
        ("distill", {}, None),
    ],
)
def test_precision_of_a_step(technique: str, parameters: dict[str, Any], precision: Precision | None) -> None:
    assert precision_of(Step(technique=technique, parameters=parameters)) is precision


places = st.integers(0, 6).map(float)
points = st.builds(Point, name=st.just("p"), verdict=st.none(), gain=places.map(interval), quality=places.map(interval))


@given(st.lists(points, min_size=1), st.booleans())
def test_front_holds_exactly_what_nothing_beats(found: list[Point], lower_is_better: bool) -> None:
    def at_least(one: Point, other: Point) -> bool:
        sign = -1 if lower_is_better else 1
        return one.gain.estimate >= other.gain.estimate and sign * one.quality.estimate >= sign * other.quality.estimate

    front = front_of(found, lower_is_better)
    assert all((point in front) == all(at_least(point, other) for other in found if at_least(other, point)) for point in found)
    assert [point.gain.estimate for point in front] == sorted(point.gain.estimate for point in front)


finite = st.floats(allow_nan=False, allow_infinity=False)
intervals = st.builds(Interval, estimate=finite, low=finite, high=finite)
shapes = st.builds(
    WorkloadResult,
    batch_rows=st.integers(1, 1 << 40),
    tokens=st.integers(0, 2),
    p50_ms=finite,
    p90_ms=finite,
    p99_ms=finite,
    rows_per_second=finite,
    samples=st.integers(1, 9),
)
measurements = st.builds(
    Measurement,
    size_bytes=st.integers(0, 1 << 50),
    load_seconds=finite,
    memory_bytes=st.integers(0, 1 << 50),
    workloads=st.lists(shapes, max_size=4).map(tuple),
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["curves", "sensitivity", "excluded", "steps", "x"]), inner, max_size=3)
    ),
    max_leaves=12,
)
notes = st.dictionaries(st.sampled_from(["curves", "sensitivity", "excluded", "steps", "bits"]), values, max_size=3)
qualities = st.builds(
    Quality,
    metric=st.sampled_from(Metric),
    original=intervals,
    candidate=intervals,
    difference=intervals,
    p_value=finite,
    test=st.text(max_size=5),
    examples=st.integers(0, 9),
)
steps = st.builds(Step, technique=st.sampled_from(["dynamic_int8", "int4_weight_only", "fp16", "bf16", "distill"]), parameters=notes)
candidates = st.builds(
    Candidate,
    name=st.sampled_from(["original", "a", "b", "$a$"]),
    steps=st.lists(steps, max_size=2).map(tuple),
    verdict=st.sampled_from(Verdict),
    reason=st.text(max_size=5),
    measurement=st.none() | measurements,
    fidelity=st.none() | intervals,
    min_fidelity=finite,
    speedup=st.none() | intervals,
    size_ratio=finite,
    notes=notes,
    optimization_seconds=finite,
    qualities=st.lists(qualities, max_size=2).map(tuple),
)
reports = st.builds(
    Report,
    original=measurements,
    candidates=st.lists(candidates, max_size=3).map(tuple),
    chosen=st.sampled_from(["", "original", "a", "nobody"]),
    environment=notes,
    metric=st.sampled_from(Metric),
    data=notes,
)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(reports, st.sampled_from(["", "m@2"]), st.sampled_from(Objective))
def test_any_report_renders(report: Report, published: str, objective: Objective) -> None:
    read = Read(render(Story("j", "m@1", BEGIN, published=published, objective=objective), report))
    assert json.loads("".join(read.scripts)) == json.loads(report.model_dump_json())
    ids = [attributes["id"] for _, attributes in read.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
