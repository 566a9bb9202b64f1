"""Peak memory of a command and of everything that it starts, as the kernel keeps it."""

import subprocess
import threading
import time
from pathlib import Path


def _facts(process: Path) -> tuple[int, int] | None:
    """Parent and peak resident bytes of a process; None where it has just ended."""
    try:
        lines = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines() if ":" in line)
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(lines["PPid"]), int(lines.get("VmHWM", "0 kB").split()[0]) * 1024


def _family(root: int) -> dict[int, int]:
    """Peak resident bytes of a process and its descendants by process id."""
    every = {int(path.name): facts for path in Path("/proc").glob("[0-9]*") if (facts := _facts(path)) is not None}
    family = {root}
    while more := {pid for pid, (parent, _) in every.items() if parent in family and pid not in family}:
        family |= more
    return {pid: every[pid][1] for pid in family if pid in every}


def peak_bytes(command: list[str], limit_seconds: float = 300) -> tuple[int, int, str]:
    """Run a command; give its exit code, the largest peak of any of its processes, and what it said on stderr.

    Processes are looked at a hundred times a second; one that lives shorter may be missed.
    """
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    peaks: dict[int, int] = {}
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.01):
            for pid, peak in _family(process.pid).items():
                peaks[pid] = max(peak, peaks.get(pid, 0))

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.monotonic()
    try:
        _, stderr = process.communicate(timeout=limit_seconds)
    finally:
        over.set()
        watcher.join()
        process.kill()
    assert time.monotonic() - started < limit_seconds
    return process.returncode, max(peaks.values()), stderr
