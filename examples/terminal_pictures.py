"""Draws docs/pictures/*.svg: what a terminal shows, from the commands themselves. usage: python examples/terminal_pictures.py"""

from __future__ import annotations

import io
import os
import re
import shutil
import tempfile
from pathlib import Path

from click.testing import CliRunner
from rich.console import Console
from rich.text import Text

from ostate.cli import main as ostate

ROOT = Path(__file__).parent.parent
RUN = ROOT / "tests" / "cases" / "long" / "long_opt"
WIDTH = 104
SCREENS = {
    "inspect": ["inspect", "checkpoint-300", "--adapter", "checkpoint-300"],
    "repair": ["repair", "checkpoint-300", "--base", "base-model", "-o", "lora.ostate.safetensors"],
}


def picture(name: str, arguments: list[str]) -> str:
    """Run a command as on a terminal and return its screen as SVG that asks the network for nothing."""
    shown = CliRunner().invoke(ostate, arguments, color=True, env={"FORCE_COLOR": "1", "COLUMNS": str(WIDTH)}).output
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(f"$ ostate {' '.join(arguments)}\n{shown}"))
    drawn = console.export_svg(title="ostate", unique_id=name)
    drawn = re.sub(r"@font-face \{.*?\}", "", drawn, flags=re.DOTALL)
    return drawn.replace("Fira Code", "ui-monospace, Menlo, Consolas")


def main() -> None:
    """Write every picture."""
    target = ROOT / "docs" / "pictures"
    target.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as room:
        shutil.copytree(RUN / "checkpoint-300", Path(room) / "checkpoint-300")
        shutil.copytree(RUN.with_suffix(".base"), Path(room) / "base-model")
        os.chdir(room)
        for name, arguments in SCREENS.items():
            (target / f"{name}.svg").write_text(picture(name, arguments), encoding="utf-8")
        os.chdir(ROOT)


if __name__ == "__main__":
    main()
