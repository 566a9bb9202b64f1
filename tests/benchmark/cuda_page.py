"""docs/benchmarks.md, section by section, and how busy a CUDA device is."""

import re
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"
HEAD = (
    "# At the scale of the published cohort\n\n"
    "Sections on a CUDA device are written by `make bench` on a machine that has one; each names it.\n"
)


def write(title: str, lines: Sequence[str]) -> None:
    """Put a section in the place of the one that has its title, or at the end."""
    PAGE.parent.mkdir(exist_ok=True)
    text = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else HEAD
    section = "\n".join([f"\n## {title}", "", *lines, ""])
    others = re.sub(rf"\n## {re.escape(title)}\n(?:(?!\n## ).|\n(?!## ))*", "", text)
    PAGE.write_text(others.rstrip("\n") + "\n" + section, encoding="utf-8")
    print(section)


class BusyShare:
    """Mean of what the driver calls utilisation, sampled ten times a second while entered."""

    def __enter__(self) -> "BusyShare":
        self._samples: list[float] = []
        query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "100"]
        self._process = subprocess.Popen(query, stdout=subprocess.PIPE, text=True)
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()
        return self

    def _listen(self) -> None:
        assert self._process.stdout is not None
        self._samples += [float(line.split()[0]) for line in self._process.stdout if line.strip()[:1].isdigit()]

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        self._thread.join()

    def percent(self) -> float:
        return float(np.mean(self._samples)) if self._samples else float("nan")
