"""`hone traffic set|show|promote|clear`."""

import re
from typing import Annotated

import typer
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from hone import specs
from hone.cli import show as tables
from hone.cli.connection import client
from hone.client import Client
from hone.inference.v1 import inference_pb2
from hone.repository.v1 import models_pb2

app = typer.Typer(no_args_is_help=True)
Model = Annotated[str, typer.Argument(help="The model's name.")]
Channel = Annotated[str, typer.Option(help="The channel whose calls are split.")]
_ARM = re.compile(r"(?:(?P<name>[a-z][a-z0-9-]*):)?(?P<target>[a-z0-9-]+)=(?P<weight>[0-9.]+)")
_SHADOW = re.compile(r"(?P<version>[0-9]+):(?P<share>[0-9.]+)")


@app.command("set")
def set_traffic(
    context: typer.Context,
    model: Model,
    arms: Annotated[
        list[str],
        typer.Argument(help="VERSION=WEIGHT, CHANNEL=WEIGHT or NAME:VERSION=WEIGHT, e.g. stable=90 4=10. The first is the control."),
    ],
    channel: Channel = "stable",
    shadow: Annotated[str, typer.Option(help="VERSION:SHARE of the control's calls to copy, e.g. 5:0.1.")] = "",
    max_error_rate: Annotated[float | None, typer.Option(help="Take an arm out that fails more often, and more than the control.")] = None,
    max_p99_ratio: Annotated[float | None, typer.Option(help="Take an arm out whose p99 is over this many times the control's.")] = None,
    min_agreement: Annotated[float | None, typer.Option(help="Take the arm of the shadow's version out below this agreement.")] = None,
    min_calls: Annotated[int, typer.Option(help="Fewest calls before an arm is judged; 0: the server's default.")] = 0,
    experiment: Annotated[str, typer.Option(help="Another name deals sticky keys to the arms anew.")] = "",
) -> None:
    """Split a channel's calls among versions."""
    with client(context) as hone:
        wanted = specs.traffic(
            dict(_arm(hone, model, arm) for arm in arms),
            shadow=_shadow(shadow) if shadow else None,
            max_error_rate=max_error_rate,
            max_p99_ratio=max_p99_ratio,
            min_agreement=min_agreement,
            min_calls=min_calls,
            experiment=experiment,
        )
        if len(wanted.arms) < len(arms):
            raise ValueError("two arms have one name; NAME:VERSION=WEIGHT names them")
        made = hone.models.set_traffic(model, wanted, channel)
    tables.console.print(plan(f"{model}:{channel}", made))


@app.command("show")
def show(
    context: typer.Context,
    model: Model,
    channel: Channel = "stable",
    alpha: Annotated[float, typer.Option(help="Chance of a false alarm over the experiment's life.")] = 0.05,
    minimum_effect: Annotated[float | None, typer.Option(help="Tell how many outcomes it takes to find a difference of this size.")] = None,
    power: Annotated[float, typer.Option(help="The chance to find it.")] = 0.8,
) -> None:
    """Show what each arm did, with intervals that hold however often they are looked at."""
    with client(context) as hone:
        wanted = hone.models.traffic(model, channel)
        if not wanted.arms:
            tables.console.print(f"the calls of {model}:{channel} are not split")
            return
        found = hone.experiment(model, channel, alpha=alpha, minimum_effect=minimum_effect, power=power)
    if found.revision != wanted.revision:
        tables.console.print(
            f"[yellow]revision {wanted.revision} is not routed by yet: {escape(found.pending_reason or 'it was just set')}[/]"
        )
    tables.console.print(experiment_tables(found))


@app.command("promote")
def promote(
    context: typer.Context, model: Model, arm: Annotated[str, typer.Argument(help="The arm's name.")], channel: Channel = "stable"
) -> None:
    """Point the channel at an arm's version and end the split."""
    with client(context) as hone:
        version = hone.models.promote_arm(model, arm, channel).version
    tables.console.print(f"{model}:{channel} is version {version} now; its calls are no longer split")


@app.command("clear")
def clear(context: typer.Context, model: Model, channel: Channel = "stable") -> None:
    """End the split: the control answers all of the channel's calls."""
    with client(context) as hone:
        hone.models.clear_traffic(model, channel)
    tables.console.print(f"the calls of {model}:{channel} are not split")


def _arm(hone: Client, model: str, text: str) -> tuple[str, tuple[int, float]]:
    """An arm's name, version and weight. Raises ValueError, grpc.RpcError for a channel that is not there."""
    found = _ARM.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} must be VERSION=WEIGHT, CHANNEL=WEIGHT or NAME:VERSION=WEIGHT")
    target, weight = found["target"], _number(found["weight"], text)
    if target.isdigit():
        return found["name"] or f"v{target}", (int(target), weight)
    return found["name"] or target, (hone.models.get(f"{model}:{target}").version, weight)


def _shadow(text: str) -> tuple[int, float]:
    found = _SHADOW.fullmatch(text)
    if found is None:
        raise ValueError(f"--shadow: {text!r} must be VERSION:SHARE")
    return int(found["version"]), _number(found["share"], f"--shadow: {text}")


def _number(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{where}: {text!r} is not a number") from None


def plan(title: str, traffic: models_pb2.Traffic) -> Group:
    """A split as it is wanted."""
    total = sum(arm.weight for arm in traffic.arms)
    rows = [(arm.name, str(arm.version), f"{arm.weight / total:.1%}", "") for arm in traffic.arms]
    if traffic.HasField("shadow"):
        rows.append(("(shadow)", str(traffic.shadow.version), "", f"{traffic.shadow.share:.1%}"))
    guarded = ", ".join(f"{field.name} {value:g}" for field, value in traffic.guardrails.ListFields())
    title = f"{title}, revision {traffic.revision}"
    return Group(tables.table(title, ("arm", "version", "calls", "copies"), rows), f"guardrails: {guarded}")


def experiment_tables(found: inference_pb2.GetExperimentResponse) -> Group:
    """The arms, then what came of their answers, then the shadow."""
    parts: list[Table | str] = [_arms(found)]
    if any(arm.outcomes for arm in found.arms):
        parts.append(_outcomes(found))
    if found.HasField("shadow"):
        parts.append(_shadow_table(found.shadow))
    parts += [f"[red]{escape(arm.name)} was taken out: {escape(arm.taken_out)}[/]" for arm in found.arms if arm.taken_out]
    return Group(*parts)


def _arms(found: inference_pb2.GetExperimentResponse) -> Table:
    rows = [
        (
            arm.name if index else f"{arm.name} (control)",
            str(arm.version),
            f"{arm.share:.1%}",
            str(arm.calls),
            f"{arm.error_rate.estimate:.2%}\n{arm.error_rate.low:.2%}–{arm.error_rate.high:.2%}",
            f"{arm.p50_seconds * 1e3:.1f} / {arm.p99_seconds * 1e3:.1f}",
        )
        for index, arm in enumerate(found.arms)
    ]
    title = f"{found.model}:{found.channel}, revision {found.revision}, counts of {found.replicas} replica{'s' * (found.replicas != 1)}"
    return tables.table(title, ("arm", "version", "calls now", "calls", "errors", "p50 / p99 ms"), rows)


def _outcomes(found: inference_pb2.GetExperimentResponse) -> Table:
    rows = [
        (f"{outcome.name}, {arm.name}", str(outcome.count), _interval(outcome.mean, outcome.is_rate), *_compared(outcome))
        for name in sorted({outcome.name for arm in found.arms for outcome in arm.outcomes})
        for arm in found.arms
        for outcome in arm.outcomes
        if outcome.name == name
    ]
    return tables.table(
        "Outcomes. Intervals and p hold at every look.", ("outcome, arm", "count", "mean", "p", "against the control"), rows
    )


def _interval(found: inference_pb2.Estimate, is_rate: bool) -> str:
    if is_rate:
        return f"{found.estimate:.2%}\n{found.low:.2%}–{found.high:.2%}"
    return f"{found.estimate:.4g}\n{found.low:.4g} to {found.high:.4g}"


def _compared(outcome: inference_pb2.OutcomeReport) -> tuple[str, str]:
    if not outcome.HasField("comparison"):
        return "", ""
    compared, verdict = outcome.comparison, escape(outcome.comparison.verdict)
    if compared.HasField("fixed_horizon"):
        horizon = compared.fixed_horizon
        told = f"p {horizon.p_value:.4f}" if horizon.HasField("p_value") else "not reached"
        verdict += f"\nfixed horizon of {horizon.needed_per_arm} each: {told}"
    return f"{compared.p_value:.4f}", verdict


def _shadow_table(found: inference_pb2.ShadowReport) -> Table:
    row = (
        str(found.version),
        f"{found.share:.1%}",
        f"{found.compared} / {found.dropped} / {found.failed}",
        f"{found.agreement.estimate:.4f}\n{found.agreement.low:.4f}–{found.agreement.high:.4f}",
        f"{found.flipped_rows} of {found.rows}",
        f"{found.total_variation:.4f}",
        f"{found.max_abs_difference:.3g}",
    )
    columns = ("shadow", "of calls", "compared / dropped / failed", "agreement", "labels flipped", "total variation", "largest difference")
    return tables.table("", columns, [row])
