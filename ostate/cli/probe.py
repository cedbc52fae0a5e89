"""`ostate probe`: is this state fit to precondition with?"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from ostate.core.extras import needed
from ostate.core.quiet import quiet
from ostate.report import probe_text

from . import MODEL, finish
from .screen import is_terminal, loudness, show


@click.command()
@click.argument("state", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--model", "model_dir", required=True, type=MODEL, metavar="DIR|ORG/NAME", help="The base model: folder, or org/name in the local HF cache."
)
@click.option("--adapter", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path), help="Folder of the adapter.")
@click.option(
    "--data",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="JSON lines, each with input_ids, or prompt and completion, or text.",
)
@click.option("--batch-e", default=2, show_default=True, help="Batch E: sequences whose entropy change is predicted.")
@click.option("--batch-u", default=2, show_default=True, help="Batch U: sequences whose update is applied.")
@click.option("--eta", type=float, help="Learning rate. Default: the state's lr, or its initial_lr if lr is 0.")
@click.option("--config", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="YAML with `importance:` checkpoint_step, …")
@click.option("--max-scale", type=float, help="A fixed cap on the scale. Default: 1e3 times the median of each kind.")
@click.option("--as", "taken_as", metavar="OPTIMIZER", help="The optimizer that made the moments, if it was only assumed: adamw.")
@click.option("--device", default="cpu", show_default=True, help="Device of the model, e.g. cuda.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True, help="Dtype of the model's weights.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document (schemas/probe-v1.schema.json).")
def command(
    state: Path,
    model_dir: str,
    adapter: Path,
    data: Path,
    batch_e: int,
    batch_u: int,
    eta: float | None,
    config: Path | None,
    max_scale: float | None,
    taken_as: str | None,
    device: str,
    dtype: str,
    as_json: bool,
) -> None:
    """Run a small probe with the named file STATE: can its preconditioner be trusted?

    Loads the model with its adapter, fills an AdamW over the LoRA parameters by name, and computes delta-H1 on the first lines of the data.
    An adapter of another run than the state's is refused; another file than the recorded one gives a warning.

    \b
    Exit codes: 0 healthy; 1 completed with warnings; 3 refused.

    \b
    Example:
        ostate probe lora.ostate.safetensors --model base --adapter checkpoint-500 --data probe.jsonl
    """
    from ostate.commands.probe import Files, probe

    files = Files(state=str(state), model=model_dir, adapter=str(adapter), data=str(data), config=str(config) if config else None)
    with _silent():
        from ostate.probe import Guards
        from ostate.probe.measure.loading import tokenizer_of

        guards = None if max_scale is None else Guards(relative_cap=None, max_scale=max_scale)
        tokenize = tokenizer_of(model_dir)
        report = probe(
            files, taken_as=taken_as, device=device, dtype=dtype, tokenize=tokenize, batch_e=batch_e, batch_u=batch_u, eta=eta, guards=guards
        )
    show(report.as_dict(), probe_text.blocks, as_json=as_json)
    finish(not report.healthy)


@contextmanager
def _silent() -> Iterator[None]:
    """Keep what transformers says while it loads off the screen: its warnings always, its progress bar where nobody would see it."""
    with needed("a probe of a model", extra="base"), quiet():
        from transformers.utils import logging

    if loudness() < 0 or not is_terminal(sys.stderr):
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    with quiet(prints=False):
        yield
