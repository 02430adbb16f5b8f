"""INT8 made again on another machine: what an earlier job measured is not measured again, and nothing comes out otherwise."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnxruntime.quantization.calibrate import load_tensors_data

from services.optimization.rows import prepare
from services.optimization.techniques import Outcome, Technique, find
from services.optimization.techniques.quantization import calibration
from services.optimization.techniques.quantization.parameters import Method
from tests.applied import apply
from tests.optimization.fake_cache import FakeCache, remembering
from tests.optimization.techniques.exports import Exports, defaulting, examples

EXPENSIVE = (
    "services.optimization.techniques.quantization.calibration.collect",
    "services.optimization.techniques.sensitivity.measure",
    "services.optimization.evaluation.fidelity.answers",
    "services.optimization.techniques.quantization.static.quantize_static",
    "services.optimization.techniques.quantization.dynamic.quantize_dynamic",
)


@contextmanager
def counting() -> Iterator[Counter[str]]:
    """Calls of what is expensive, by the function's name."""
    calls: Counter[str] = Counter()
    with pytest.MonkeyPatch.context() as patch:
        for path in EXPENSIVE:
            module, _, name = path.rpartition(".")
            patch.setattr(path, _counted(calls, name, getattr(__import__(module, fromlist=[name]), name)))
        yield calls


def _counted(calls: Counter[str], name: str, function: Any) -> Any:
    def counted(*args: Any, **kwargs: Any) -> Any:
        calls[name] += 1
        return function(*args, **kwargs)

    return counted


def knowing(technique: Technique, cache: FakeCache) -> Technique:
    return replace(technique, apply=lambda context: technique.apply(replace(context, remembered=remembering(cache))))


class Workshop:
    """A machine without kept steps, and the cache that it shares with others."""

    def __init__(self, exports: Exports, root: Path) -> None:
        self.cache = FakeCache()
        self._source = exports["vit"]
        self._root = root
        self._made = 0

    def make(self, technique: Technique, **parameters: Any) -> tuple[bytes, Outcome, Counter[str]]:
        self._made += 1
        with counting() as calls:
            known, root = knowing(technique, self.cache), self._root / str(self._made)
            target, outcome = apply(known, *self._source, root, calibration=examples("vit"), **parameters)
        return (target / "model.onnx").read_bytes(), outcome, calls


@pytest.fixture
def workshop(exports: Exports, tmp_path: Path) -> Workshop:
    return Workshop(exports, tmp_path)


@pytest.mark.parametrize("method", ["minmax", "entropy", "percentile"])
def test_a_repeated_calibration_costs_one_quantization(workshop: Workshop, method: str) -> None:
    technique = defaulting("static_int8", calibration=method, target_fidelity=0.99999)
    first, second = workshop.make(technique), workshop.make(technique)
    assert first[2]["collect"] == first[2]["measure"] == 1
    assert first[2]["answers"] > 2  # the source, and each trial
    assert second[2] == {"quantize_static": 1}
    assert second[:2] == first[:2]


def test_a_repeated_search_of_dynamic_int8_costs_one_quantization(workshop: Workshop) -> None:
    technique = defaulting("dynamic_int8", target_fidelity=0.99999)
    first, second = workshop.make(technique), workshop.make(technique)
    assert first[2]["measure"] == 1
    assert second[2] == {"quantize_dynamic": 1}
    assert second[:2] == first[:2]


def test_a_changed_exclusion_measures_its_own_trial_alone(workshop: Workshop) -> None:
    first = workshop.make(defaulting("static_int8", target_fidelity=0.5, reduce_range=False))
    layer = next(iter(first[1].notes["sensitivity"]))
    changed = workshop.make(defaulting("static_int8", target_fidelity=0.5, reduce_range=False, exclude=[layer]))
    assert changed[2] == {"answers": 1, "quantize_static": 1}
    assert changed[1].notes["excluded"] == [layer]


@pytest.mark.parametrize("change", [{"calibration": "entropy"}, {"per_channel": False}, {"quantize_embeddings": False, "percentile": 95}])
def test_other_parameters_are_found_under_their_own_digests(workshop: Workshop, change: dict[str, Any]) -> None:
    """What changes nothing of the ranges does not hinder finding them; the result is as without a cache."""
    workshop.make(find("static_int8"))
    remembered = workshop.make(defaulting("static_int8", **change))
    workshop.cache = FakeCache()
    fresh = workshop.make(defaulting("static_int8", **change))
    assert remembered[2]["collect"] == ("calibration" in change)
    assert remembered[:2] == fresh[:2]


def test_a_percentile_has_ranges_of_its_own(workshop: Workshop) -> None:
    narrow, wide = (
        workshop.make(defaulting("static_int8", calibration="percentile", percentile=percentile, target_fidelity=None))
        for percentile in (95, 99.99)
    )
    assert narrow[2]["collect"] == wide[2]["collect"] == 1
    assert narrow[0] != wide[0]


def test_damage_and_an_outage_in_the_middle_cost_the_measuring_alone(workshop: Workshop) -> None:
    first = workshop.make(find("static_int8"))
    whole = dict(workshop.cache.kept)
    for name, value in whole.items():
        workshop.cache.kept[name] = value[:-1] + bytes([value[-1] ^ 1])
    damaged = workshop.make(find("static_int8"))
    assert (damaged[:2], damaged[2]["collect"]) == (first[:2], 1)
    workshop.cache.kept, workshop.cache.calls, workshop.cache.fault_after = whole, 0, 2  # dies after the ranges were found
    dying = workshop.make(find("static_int8"))
    assert dying[:2] == first[:2]
    assert (dying[2]["collect"], dying[2]["measure"]) == (0, 1)


@pytest.mark.parametrize("method", list(Method))
def test_ranges_are_decoded_in_their_order(exports: Exports, tmp_path: Path, method: Method) -> None:
    folder, signature = exports["vit"]
    rows = prepare(folder, signature, examples("vit"))
    found = calibration.collect(folder / "model.onnx", ["MatMul"], rows, tmp_path, method, 99.0)
    decoded = calibration.decode(calibration.encode(found), method)
    assert list(decoded.keys()) == list(found.keys())
    for name, data in (("found", found), ("decoded", decoded)):
        calibration.save(data, tmp_path / name)
    read = [load_tensors_data(tmp_path / name) for name in ("found", "decoded")]  # as quantize_static does
    for name in found:
        attributes = [vars(data[name]) for data in read]
        assert attributes[0].keys() == attributes[1].keys()
        assert all(np.array_equal(attributes[0][key], attributes[1][key]) for key in ("lowest", "highest"))
    assert calibration.ranges(decoded) == calibration.ranges(found)
