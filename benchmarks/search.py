"""`python -m benchmarks search`: the advisor's search beside random search and a full grid, on equal budget.

Everything that the advisor may try is made and measured once on MiniLM taught to tell which of six packages a sentence is from, by
the code that a job's search runs; what lies in the folder is not measured again. Then every way to search is replayed over these
figures, with steps that recipes have in common paid once by each. Costs are shares of what the full grid takes.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path

from hone.cli.show import console, table

from benchmarks.anytime_plot import Course, drawn
from benchmarks.grid import Grid, Material, measured
from benchmarks.methods import FOLDER, TAUGHT
from benchmarks.origins import corpus, teacher
from benchmarks.replay import Band, Replay, Table, speedup_of
from services.optimization.advisor.guess import Guess, Prior
from services.optimization.advisor.seeking import TRIAL_SHARE
from services.optimization.advisor.wanted import Wanted

LOSSES = (0.01, 0.02, 0.05)
BUDGETS = (0.05, 0.1, 0.2, 0.4)  # of the grid's cost
SPEEDUPS = (2.0, 3.0, 4.0, 6.0, 8.0)
SIZE_RATIOS = (4.0,)


@dataclass(frozen=True)
class Contest:
    """The ways to search, over one table."""

    table: Table
    priors: Mapping[str, Prior]
    seeds: int

    def share(self, seconds: float) -> float:
        return seconds / self.table.grid_seconds


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks search", description=__doc__)
    parser.add_argument("--train", type=int, default=8_000, help="sentences that smaller models learn from")
    parser.add_argument("--held-out", type=int, default=2_000, help="sentences to judge by")
    parser.add_argument("--only", nargs="*", default=[], metavar="PART", help="rungs that have one of these parts, e.g. int8 student-1")
    parser.add_argument("--trial-seconds", type=float, default=60 * TRIAL_SHARE, help="that each rung is timed beside the original")
    parser.add_argument("--seeds", type=int, default=1_000, help="orders of random search")
    told = parser.parse_args(arguments)
    data = corpus(FOLDER)
    train, held_out = data.train[: told.train], data.held_out[: told.held_out]
    folder = FOLDER / f"search-{len(train)}-{len(held_out)}"
    material = Material(teacher(FOLDER, data.train[:TAUGHT]), train, held_out, told.trial_seconds)
    grid = measured(folder, material, told.only, lambda line: console.print(line, highlight=False))
    contest = Contest(grid.table(), grid.priors, told.seeds)
    _tell_grid(grid, contest)
    _tell_budgets(contest)
    _tell_targets(contest)
    _tell_estimates(contest)
    console.print(f"drawn: {_draw(contest, folder / 'anytime.svg')}", highlight=False)


# What was measured


def _tell_grid(grid: Grid, contest: Contest) -> None:
    rows = list(_measured_rows(contest))
    columns = ("rung", "speed-up", "expected", "smaller", "points lost, 95 %", "seconds", "planned")
    console.print(table("Everything that may be tried, measured; expected by the rule of thumb", columns, rows, whole=True))
    told = f"{grid.training_rows} sentences to learn from, {grid.held_out_rows} to judge by, {grid.environment['threads']} threads"
    whole = f"the full grid of {len(contest.table.grid)} takes {contest.table.grid_seconds:.0f} s, steps in common made once"
    console.print(f"{told}; {grid.environment['cpu_model']}; {whole}", highlight=False)


def _measured_rows(contest: Contest) -> Iterator[tuple[str, ...]]:
    for cell in contest.table.cells.values():
        trial, expected = cell.trial, _expected(contest, cell.rung.parts)
        took = f"{cell.own_seconds + sum(cell.makings.values()):.0f}"
        if trial.speedup is None:
            yield cell.rung.name, "infeasible", f"{expected:.1f}", "", "", took, f"{cell.rung.seconds:.0f}"
            continue
        loss = trial.loss
        lost = "" if loss is None else f"{100 * loss.estimate:+.2f} ({100 * loss.low:+.2f} to {100 * loss.high:+.2f})"
        speedup = f"{trial.speedup.estimate:.2f}"
        yield cell.rung.name, speedup, f"{expected:.1f}", f"{trial.size_ratio:.1f}", lost, took, f"{cell.rung.seconds:.0f}"


def _expected(contest: Contest, parts: Sequence[str]) -> float:
    """By the priors alone."""
    found = Guess(1.0, 0.0)
    for part in parts:
        found = found * contest.priors[part].speedup
    return found.median


# Without a target


def _tell_budgets(contest: Contest) -> None:
    columns = ("loss allowed", "budget", "search", "random, 90 % of orders", "cheapest first", "grid's best")
    title = "No target: the best accepted speed-up within a budget, as a share of the full grid's best"
    console.print(table(title, columns, [_budget_row(contest, loss, share) for loss in LOSSES for share in (*BUDGETS, 1.0)]))


def _budget_row(contest: Contest, loss: float, share: float) -> tuple[str, ...]:
    found, wanted, budget = contest.table, Wanted(loss), share * contest.table.grid_seconds
    best = found.best(loss)
    ours = found.searched(wanted, contest.priors, budget)
    random = Band.of(each.best_by(inf) / best for each in found.at_random(wanted, contest.seeds, budget))
    cheapest = found.cheapest_first(wanted, budget).best_by(inf) / best
    spent = "" if ours.seconds >= 0.99 * budget else f" ({contest.share(ours.seconds):.0%} spent)"
    return (f"{loss:.0%}", f"{share:.0%}", f"{ours.best_by(inf) / best:.0%}{spent}", _band(random), f"{cheapest:.0%}", f"{best:.2f}x")


def _band(band: Band) -> str:
    return f"{_percent(band.median)} ({_percent(band.low)} to {_percent(band.high)})"


def _percent(share: float) -> str:
    return "never" if share == inf else f"{share:.0%}"


# With one


def _targets() -> Iterator[tuple[str, Wanted]]:
    for loss in LOSSES:
        yield from ((f"{speedup:g}x as fast, {loss:.0%} lost", Wanted(loss, speedup=speedup)) for speedup in SPEEDUPS)
        yield from ((f"{ratio:g}x smaller, {loss:.0%} lost", Wanted(loss, size_ratio=ratio)) for ratio in SIZE_RATIOS)


def _tell_targets(contest: Contest) -> None:
    goals = [(name, wanted, contest.table.searched(wanted, contest.priors)) for name, wanted in _targets()]
    columns = ("target", "search", "random, 90 % of orders", "cheapest first", "could be")
    title = "A target: cost until the first that meets it, as a share of the full grid's; where none does, when the search ended"
    console.print(table(title, columns, [_target_row(contest, name, wanted, ours) for name, wanted, ours in goals]))
    possible = [(name, ours) for name, wanted, ours in goals if contest.table.has(wanted)]
    given_up = [name for name, ours in possible if not ours.reason.startswith("the target is met")]
    told = f": {', '.join(given_up)}" if given_up else ""
    console.print(f"targets that the grid has and the search gave up: {len(given_up)} of {len(possible)}{told}", highlight=False)


def _target_row(contest: Contest, name: str, wanted: Wanted, ours: Replay) -> tuple[str, ...]:
    found = contest.table
    ended = f"{contest.share(ours.seconds):.1%}"
    if not found.has(wanted):
        return (name, f"{ended}, none", "100%, none", "100%, none", "none")
    random = Band.of(contest.share(each.met_at(wanted)) for each in found.at_random(wanted, contest.seeds))
    cheapest = contest.share(found.cheapest_first(wanted).met_at(wanted))
    reached = ended if ours.met_at(wanted) < inf else f"{ended}, gave up"
    return (name, reached, _band(random), _percent(cheapest), f"{contest.share(_least(contest, wanted)):.1%}")


def _least(contest: Contest, wanted: Wanted) -> float:
    """Seconds of the cheapest that meets the target, had it been known."""
    found = contest.table
    return min(found.in_order([cell], wanted).met_at(wanted) for cell in found.grid)


# Estimates beside what came


def _tell_estimates(contest: Contest) -> None:
    feasible = [cell for cell in contest.table.cells.values() if cell.trial.is_feasible]
    whole = contest.table.searched(Wanted(LOSSES[-1]), contest.priors)
    moves = [move for move in whole.moves if move.trial.is_feasible]
    ratios: Mapping[str, list[float]] = {
        "speed-up, by the rule of thumb": [speedup_of(cell.trial) / _expected(contest, cell.rung.parts) for cell in feasible],
        "speed-up, by what the search knew": [speedup_of(move.trial) / move.expected_speedup for move in moves],
        "seconds, as planned at first": [(cell.own_seconds + sum(cell.makings.values())) / cell.rung.seconds for cell in feasible],
        "seconds, by what the search knew": [move.seconds / move.planned_seconds for move in whole.moves],
    }
    rows = [_ratio_row(name, found) for name, found in ratios.items() if found]
    columns = ("of", "trials", "median", "80 % of them")
    console.print(table("Estimate and reality: what came, over what was expected", columns, rows, whole=True))


def _ratio_row(name: str, ratios: Sequence[float]) -> tuple[str, ...]:
    band = Band.of(ratios, 0.8)
    return (name, str(len(ratios)), f"{band.median:.2f}", f"{band.low:.2f} to {band.high:.2f}")


def _draw(contest: Contest, path: Path) -> Path:
    path.write_text(drawn([_course(contest, loss) for loss in LOSSES]), encoding="utf-8")
    return path


def _course(contest: Contest, loss: float) -> Course:
    """Best so far as a share of the grid's best, by cost as a share of the grid's."""
    found, wanted = contest.table, Wanted(loss)
    shares = [number / 200 for number in range(201)]
    best, at = found.best(loss), [share * found.grid_seconds for share in shares]
    ours, random = found.searched(wanted, contest.priors), list(found.at_random(wanted, contest.seeds))
    bands = [Band.of(each.best_by(seconds) / best for each in random) for seconds in at]
    return Course(f"{loss:.0%} lost at most", shares, [ours.best_by(seconds) / best for seconds in at], bands, contest.share(ours.seconds))
