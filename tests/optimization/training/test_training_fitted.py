import json

from hypothesis import given
from hypothesis import strategies as st

from services.optimization.training.fitted import LARGEST_CURVE, Curves, thinned


@given(st.integers(0, 3000), st.integers(2, 200))
def test_a_thinned_curve_keeps_its_ends_and_its_order(count: int, most: int) -> None:
    points = [(step, float(step)) for step in range(count)]
    found = thinned(points, most)
    assert len(found) == min(count, most)
    assert found == sorted(set(found))
    assert found[:1] == points[:1]
    assert found[-1:] == points[-1:]


@given(st.integers(1, 3000), st.integers(0, 3000))
def test_curves_stay_small_and_go_on_where_their_json_was_read(steps: int, paused_at: int) -> None:
    straight, paused = Curves(), Curves()
    for step in range(steps):
        straight.record(step, {"loss": step / 2})
        paused.record(step, {"loss": step / 2})
        if step == paused_at:
            paused = Curves(json.loads(json.dumps(paused.plain())))
    assert paused.points == straight.points
    assert len(straight.points["loss"]) <= 2 * LARGEST_CURVE
    assert straight.points["loss"][0] == (0, 0.0)
    assert all(value == step / 2 for step, value in straight.points["loss"])
