"""Draws docs/pictures: the terminal at 80 and 160 columns, the report at 1400 and 390 pixels, light and dark. usage: python -m tests.pictures

The report needs Chromium (`apt-get install chromium`) and Pillow.
"""

from __future__ import annotations

import base64
import io
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from click.testing import CliRunner
from PIL import Image
from rich.console import Console
from rich.text import Text

from ostate.cli import main as ostate
from tests.report.browser import CHROMIUM, page

ROOT = Path(__file__).parent.parent
TARGET = ROOT / "docs" / "pictures"
RUN = ROOT / "tests" / "cases" / "long" / "long_opt"
SCREENS = {
    "inspect": ["inspect", "checkpoint-300", "--adapter", "checkpoint-300"],
    "repair": ["repair", "checkpoint-300", "--base", "base-model", "-o", "lora.ostate.safetensors"],
    "refusal": ["validate", "checkpoint-300"],
}
WIDTHS = {"": 80, "-160": 160}
SCHEMES = ("light", "dark")
SIZES = {1400: 1500, 390: 1500}
"""Width -> height of a picture of the report, px."""


def terminal(name: str, arguments: list[str], width: int) -> str:
    """Run a command as on a terminal and return its screen as SVG that asks the network for nothing."""
    if "-o" in arguments:  # each width writes it anew
        Path(arguments[arguments.index("-o") + 1]).unlink(missing_ok=True)
    shown = CliRunner().invoke(ostate, arguments, color=True, env={"FORCE_COLOR": "1", "COLUMNS": str(width)}).output
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(f"$ ostate {' '.join(arguments)}\n{shown}"))
    drawn = console.export_svg(title="ostate", unique_id=name)
    drawn = re.sub(r"@font-face \{.*?\}", "", drawn, flags=re.DOTALL)
    return drawn.replace("Fira Code", "ui-monospace, Menlo, Consolas")


def report(file: Path, profile: Path, say: Callable[[str], None]) -> None:
    """Write the report's pictures."""
    with page(profile) as tab:
        for width, height in SIZES.items():
            for scheme in SCHEMES:
                tab.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500)
                tab.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
                tab.ask("Emulation.setScrollbarsHidden", hidden=True)
                tab.open(file)
                data = base64.b64decode(tab.ask("Page.captureScreenshot", format="png")["data"])
                target = TARGET / f"report-{width}-{scheme}.webp"
                Image.open(io.BytesIO(data)).convert("RGB").save(target, quality=70, method=6)
                say(str(target))


def main() -> None:
    """Write every picture."""
    TARGET.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shutil.copytree(RUN / "checkpoint-300", folder / "checkpoint-300")
        shutil.copytree(RUN.with_suffix(".base"), folder / "base-model")
        os.chdir(folder)
        for name, arguments in SCREENS.items():
            for suffix, width in WIDTHS.items():
                (TARGET / f"{name}{suffix}.svg").write_text(terminal(f"{name}{suffix}", arguments, width), encoding="utf-8")
        CliRunner().invoke(ostate, ["report", "lora.ostate.safetensors", "--adapter", "checkpoint-300", "-o", "report.html"], catch_exceptions=False)
        os.chdir(ROOT)
        if CHROMIUM is None:
            print("no Chromium: the report's pictures stay as they are")
            return
        report(folder / "report.html", folder / "profile", print)


if __name__ == "__main__":
    main()
