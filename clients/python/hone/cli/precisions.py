"""Which precisions qualify on the server's machine, as a table."""

from rich.markup import escape
from rich.table import Table

from hone.cli import show
from hone.optimization.v1 import advisor_pb2 as pb


def table(found: pb.Recommendation) -> Table:
    columns = ("precision", "recipe", "speed-up", "smaller", "loss", "qualifies", "why")
    return show.table("precisions on this machine, the best recipe of each", columns, [_row(each) for each in found.precisions])


def _row(found: pb.PrecisionFinding) -> tuple[str, ...]:
    measured = found.HasField("speedup")
    return (
        pb.Precision.Name(found.precision).removeprefix("PRECISION_"),
        found.recipe or ("the original" if measured else ""),
        show.interval(found.speedup, 2) if measured else "",
        f"{found.size_ratio:.1f}x" if measured else "",
        show.interval(found.loss, 4) if found.HasField("loss") else "",
        "[green]yes[/]" if found.qualifies else "no",
        escape("\n".join(filter(None, (found.reason, found.note)))),
    )
