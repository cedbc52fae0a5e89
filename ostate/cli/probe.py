"""`ostate probe`: is this state fit to precondition with?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import finish

if TYPE_CHECKING:
    from ostate.probe.protocol import ProbeReport


@click.command()
@click.argument("state", type=click.Path(exists=True, path_type=Path))
@click.option("--model", "model_dir", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path), help="Folder of the base model.")
@click.option("--adapter", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path), help="Folder of the adapter.")
@click.option(
    "--data", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path), help="JSONL: input_ids, or prompt and completion, or text."
)
@click.option("--batch-e", default=2, show_default=True, help="Sequences whose entropy is watched.")
@click.option("--batch-u", default=2, show_default=True, help="Sequences whose update is asked about.")
@click.option("--eta", type=float, help="Learning rate. Default: the state's lr, or its initial_lr where lr is 0.")
@click.option("--config", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="YAML with `importance:` checkpoint_step, …")
@click.option("--max-scale", type=float, help="A fixed cap on the scale. Default: 1e3 times its median.")
@click.option("--device", default="cpu", show_default=True, help="Where the model runs, e.g. cuda.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True, help="Of the model's weights.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def command(
    state: Path,
    model_dir: Path,
    adapter: Path,
    data: Path,
    batch_e: int,
    batch_u: int,
    eta: float | None,
    config: Path | None,
    max_scale: float | None,
    device: str,
    dtype: str,
    as_json: bool,
) -> None:
    """Run a tiny probe with the named file STATE and say whether its preconditioner can be trusted.

    \b
    Example:
        ostate probe lora.ostate.safetensors --model base --adapter checkpoint-500 --data probe.jsonl
    """
    import torch

    from ostate import load
    from ostate.probe import Guards, protocol

    settings = protocol.read_settings(str(config)) if config else None
    named = load(str(state))
    model = protocol.load_model(str(model_dir), str(adapter), dtype=getattr(torch, dtype), device=device)
    records = protocol.read_records(str(data), _tokenizer(model_dir))
    guards = None if max_scale is None else Guards(relative_cap=None, max_scale=max_scale)
    report = protocol.run(named, model, records, batch_e=batch_e, batch_u=batch_u, eta=eta, settings=settings, guards=guards)
    if as_json:
        click.echo(json.dumps(report.as_dict(), indent=2))
    else:
        _print(report)
    finish(not report.healthy)


def _tokenizer(model_dir: Path):  # type: ignore[no-untyped-def]  # noqa: ANN202
    if not any((model_dir / name).exists() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")):
        return None
    from transformers import AutoTokenizer

    found = AutoTokenizer.from_pretrained(str(model_dir), local_files_only=True, trust_remote_code=False)
    return lambda text: found(text, add_special_tokens=False)["input_ids"]


def _print(report: ProbeReport) -> None:
    from rich.console import Console

    result, stats = report.result, report.stats
    click.echo(f"coverage: exp_avg_sq {report.coverage:.1%}, step {report.coverage_step:.1%}")
    odd = ", ".join(f"{stats[key]} {key}" for key in ("zero", "tiny", "negative", "nonfinite"))
    click.echo(f"exp_avg_sq, elements: {odd}, of {stats['elements']}")
    Console().print(report.preconditioner.summary())
    click.echo(f"bars_dot, identity:        {result.bars_dot_identity:.6e}")
    click.echo(f"bars_dot, preconditioned:  {result.bars_dot:.6e}")
    click.echo(f"ratio {result.ratio:.4g}, of the terms' size {result.mass_ratio:.4g}; plausible for this state: about {result.plausible_ratio:.4g}")
    click.echo("share of the product: " + ", ".join(f"{bucket} {share:.1%}" for bucket, share in result.shares.items()))
    click.echo(f"delta-H1 = {result.eta:g} ({report.eta_from}) x bars_dot = {result.value:.6e}")
    for finding in report.findings:
        click.echo(f"{finding.severity}: {finding.text}" + (f" ({finding.fix})" if finding.fix else ""))
    click.echo(f"verdict: {result.verdict}")
