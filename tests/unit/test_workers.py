"""Children do what they are asked, and nothing that ends one of them, or their parent, is waited for."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from cohort_scorer import workers
from cohort_scorer.errors import MachineError

KILLED = MachineError("A child was killed.", "Expected none to be.", "Do it again.")
# A parent with two children, one of which has nothing to do: it says who they are, and waits.
PARENT = """
import multiprocessing, time
from cohort_scorer.errors import MachineError
from cohort_scorer import workers
if __name__ == "__main__":
    with workers.pool(2, MachineError("", "", "")) as submit:
        submit(abs, -1).result()
        submit(time.sleep, 60)
        print(*[child.pid for child in multiprocessing.active_children()], flush=True)
        time.sleep(60)
"""


def is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def refuse(word: str) -> None:
    raise LookupError(word)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_while_answering(seconds: float) -> bytes:
    threading.Timer(seconds, die).start()
    return bytes(2**27)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_children_do_not_outlive_a_parent_that_is_killed(tmp_path: Path, number: int) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    children = [int(word) for word in parent.stdout.readline().split()]
    assert len(children) == 2 and all(map(is_alive, children))
    parent.send_signal(number)
    _, stderr = parent.communicate()
    assert stderr == ""
    deadline = time.monotonic() + 10
    while any(map(is_alive, children)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_alive, children))


def test_results_and_errors_come_back() -> None:
    with workers.pool(2, KILLED) as submit:
        futures = [submit(divmod, number, 3) for number in range(7)]
        assert [future.result() for future in futures] == [divmod(number, 3) for number in range(7)]
        with pytest.raises(LookupError, match="word") as raised:
            submit(refuse, "word").result()
        assert "in refuse" in raised.value.__notes__[0]
        assert submit(abs, -1).result() == 1


@pytest.mark.parametrize("seconds", [0, 0.02, 0.05, 0.1, 0.2])
def test_a_child_that_is_killed_is_told_wherever_it_was(seconds: float) -> None:
    """With one pipe for all children, one killed while it wrote to it was waited for: for ever."""
    with pytest.raises(MachineError) as raised, workers.pool(2, KILLED) as submit:
        for future in [submit(die_while_answering, seconds) for _ in range(3)]:
            future.result()
    assert raised.value is KILLED


def test_whatever_ends_the_block_ends_the_children_at_once() -> None:
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt), workers.pool(2, KILLED) as submit:
        for _ in range(5):
            submit(time.sleep, 60)
        raise KeyboardInterrupt
    assert time.monotonic() - started < 30


def test_ctrl_c_while_a_child_starts_waits_until_it_has_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any thread of the parent may take the signal: a child half started would print a traceback."""
    context, started = multiprocessing.get_context("spawn"), list[BaseProcess]()
    start, is_starting = context.Process.start, threading.Event()

    def take_signal() -> None:
        is_starting.wait()
        signal.raise_signal(signal.SIGINT)

    other = threading.Thread(target=take_signal)
    other.start()

    def interrupted(process: BaseProcess) -> None:
        is_starting.set()
        other.join()
        start(process)
        started.append(process)

    monkeypatch.setattr(context.Process, "start", interrupted)
    with pytest.raises(KeyboardInterrupt), workers.pool(2, KILLED):
        pass
    assert len(started) == 1
    started[0].kill()
    started[0].join()
