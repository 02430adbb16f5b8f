"""Versions are loaded by several threads at once; the library behind them patches its own classes while it loads."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from services import backends
from services.backends.torch import load_module
from tests.models import causal_lm, causal_lm_signature


def test_tied_weights_stay_tied_however_many_load_at_once(tmp_path: Path) -> None:
    folder, signature = causal_lm(tmp_path / "lm"), causal_lm_signature()
    with ThreadPoolExecutor(8) as pool:
        for backend in pool.map(lambda _: backends.load(folder, signature, 1), range(24)):
            backend.close()
    loaded = load_module(folder, signature).model
    assert loaded.lm_head.weight is loaded.transformer.wte.weight
