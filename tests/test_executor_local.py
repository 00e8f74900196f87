"""Tasks in worker processes: each answered once, whatever it or its neighbours do, and nothing left running."""

import contextlib
import errno
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from hwsim.sweep.executors import Limits, Order, local
from hwsim.sweep.executors.local import DEPTH, LocalExecutor
from hwsim.sweep.tasks import CRASHED, DONE, ERROR, MEMORY, REFUSED, TIMEOUT
from models.unit import InputError

EVALUATION = "executor_tasks:evaluation"


def order(kind, *, key=None, settings=None, **inputs):
    key = key or f"{kind} {inputs}"
    return Order(key=key, evaluation=EVALUATION, settings=settings or {}, kind=kind, inputs=inputs)


@pytest.fixture
def make():
    """Executors that are closed in the end."""
    made = []

    def new(workers=1, *, time_s=30.0, memory_mib=1000):
        made.append(LocalExecutor(workers, Limits(time_s=time_s, memory_mib=memory_mib)))
        return made[-1]

    yield new
    for executor in made:
        executor.close()


def collect(executor, count):
    """That many outcomes by key, each exactly once, and no more."""
    outcomes = []
    while len(outcomes) < count:
        outcomes += executor.wait(30) or pytest.fail(f"{len(outcomes)} of {count} within 30 s")
    assert executor.wait() == []
    assert executor.running() == []
    assert max(Counter(outcome.key for outcome in outcomes).values()) == 1
    return {outcome.key: outcome for outcome in outcomes}


def do(executor, *orders):
    for each in orders:
        executor.submit(each)
    outcomes = collect(executor, len(orders))
    return [outcomes[each.key] for each in orders]


def at_once(executor, orders):
    """As `do`, after a task so short that several go to one worker."""
    do(executor, order("echo", value=0))
    return do(executor, *orders)


def alive(pid):
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def pids_in(path):
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def wait_until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "it did not happen within 20 s"
        time.sleep(0.005)


# ---- results


def test_what_comes_back(make):
    executor = make(2)
    assert executor.wait(0) == executor.wait() == executor.running() == []
    (outcome,) = do(executor, order("numbers", key="a"))
    assert (outcome.key, outcome.status, outcome.message, outcome.traceback) == ("a", DONE, "", "")
    assert outcome.result == {"whole": 3, "half": 0.5, "yes": True, "list": [0, 1, 2], "inner": [{}]}
    assert [type(outcome.result[name]) for name in ("whole", "half", "yes")] == [int, float, bool]
    (slept,) = do(executor, order("rest", s=0.05))
    assert 0.05 <= slept.wall_s < 5


def test_text_of_every_kind_goes_there_and_back(make):
    values = ["\"'<>&\n\r\0\u2028\ud800", {"": [None, True, -1, 1.5e300, 2**70]}, "x" * 300_000]
    assert [
        outcome.result["value"]
        for outcome in do(make(), *(order("echo", key=f"{i}", value=value) for i, value in enumerate(values)))
    ] == values


def test_what_is_no_result_is_an_error(make):
    nan, inner, listed, odd, unknown = do(
        make(), *(order("no_result", what=what) for what in ("nan", "inner", "list", "object")), order("nothing")
    )
    assert {o.status for o in (nan, inner, listed, odd, unknown)} == {ERROR}
    assert nan.message.startswith("ValueError: Out of range float values are not JSON compliant")
    assert inner.message.startswith("ValueError: Out of range float values are not JSON compliant")
    assert listed.message == "TypeError: the result is no mapping but of type list"
    assert odd.message == "TypeError: object is no plain data"
    assert unknown.message == "KeyError: 'nothing'"
    assert nan.result == {}


def test_what_a_task_raises_is_its_message_and_the_worker_goes_on(make):
    executor = make()
    first, refused, failed, left, mute, last = do(
        executor,
        order("calls"),
        order("refuse"),
        order("fail"),
        order("leave"),
        order("unprintable"),
        order("calls", key="again"),
    )
    assert (refused.status, refused.message, refused.traceback) == (REFUSED, "K=7 does not fit at all", "")
    assert (failed.status, failed.message) == (ERROR, "ZeroDivisionError: division by zero")
    assert "return 1 / 0" in failed.traceback
    assert (left.status, left.message) == (ERROR, "SystemExit: enough")
    assert mute.status == ERROR
    assert "Mute" in mute.message
    assert first.result["pid"] == last.result["pid"]


def test_an_evaluation_lives_as_long_as_its_worker(make, tmp_path):
    executor, settings = make(), {"log": str(tmp_path / "log")}
    orders = [order("add", x=x, settings=settings) for x in range(50)]
    *_, last = do(executor, *orders, order("calls", settings=settings))
    assert last.result["calls"] == 50
    do(executor, order("add", key="other", x=1, settings={**settings, "b": 1}))
    assert len(pids_in(tmp_path / "log")) == 2


def test_peak_memory_is_that_of_the_task_alone(make):
    before, big, after = (o.peak_memory_bytes for o in do(make(), *(order("hold", mib=m) for m in (1, 200, 2))))
    assert before < 100 << 20
    assert 200 << 20 <= big < 300 << 20
    assert after < before + (50 << 20)


def test_what_tasks_print_harms_nothing(make):
    executor = make()
    noise, ended = do(executor, order("noise", mib=2), order("end", code=3))
    assert noise.status == DONE
    assert ended.message == "worker ended by exit code 3: out of patience"
    noise, ended = do(executor, order("noise", mib=2), order("kill", number=signal.SIGSEGV))
    assert ended.message == "worker ended by signal SIGSEGV", "words of the task before"


# ---- many


def test_tiny_tasks_are_many_at_a_time_and_leave_nothing_behind(make):
    """Of the executor's process: memory that each task kept would be 20,000-fold."""
    executor, count = make(2), 20_000
    do(executor, order("add", x=-1))
    answered, sent, most, seen = 0, 0, 0, []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    while answered < count:
        while sent < count and executor.room() > 0:
            executor.submit(order("add", key=str(sent), x=sent))
            sent += 1
        most = max(most, sent - answered)
        for outcome in executor.wait():
            assert outcome.result == {"sum": int(outcome.key) + 1}
            answered += 1
            seen.append(int(outcome.key))
    assert sorted(seen) == list(range(count))
    assert 4 * DEPTH >= most > DEPTH
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 10 << 10


def test_room_is_for_more_than_is_computed_and_long_tasks_are_not_queued(make):
    executor = make(2)
    taken = 0
    while executor.room() > 0:
        executor.submit(order("rest", key=str(taken), s=0.07))
        taken += 1
    assert taken == 2 + 2 * local.CHOICE
    start = time.monotonic()
    outcomes = collect(executor, taken)
    assert {o.status for o in outcomes.values()} == {DONE}
    long = [executor.submit(order("rest", key=str(i), s=0.07)) for i in range(6)]
    assert len(executor.running()) == 2 < len(long)
    assert [len(worker.jobs) for worker in executor._crew] == [1, 1]
    assert time.monotonic() - start < 20
    collect(executor, 6)


def test_orders_that_share_results_stay_with_a_worker(make):
    """Groups are computed by one process each, but for the first and the last, though both are busy all the time."""
    executor = make(2)
    groups = [f"group {index // 4}" for index in range(24)]
    for index, group in enumerate(groups):
        executor.submit(Order(**{**vars(order("rest", key=str(index), s=0.06)), "affinity": group}))
    outcomes = collect(executor, len(groups))
    by_group = {}
    for index, group in enumerate(groups):
        by_group.setdefault(group, []).append(outcomes[str(index)].result["pid"])
    assert len({pid for pids in by_group.values() for pid in pids}) == 2
    assert sum(len(set(pids)) == 1 for pids in by_group.values()) > len(by_group) / 2 - 1


def test_nothing_is_queued_behind_a_worker_that_still_starts(make):
    executor = make(2)
    do(executor, order("echo", value=0))
    for value in range(20):
        executor.submit(order("echo", key=str(value), value=value))
    assert [len(worker.jobs) for worker in executor._crew] == [19, 1]
    collect(executor, 20)


def test_orders_and_answers_larger_than_any_buffer_do_not_block(make):
    executor = make()
    orders = [order("echo", key=str(i), value=chr(97 + i % 26) * 300_000) for i in range(40)]
    outcomes = at_once(executor, orders)
    assert all(o.result["value"] == each.inputs["value"] for o, each in zip(outcomes, orders, strict=True))


# ---- time


def test_a_task_that_never_returns_is_killed_and_its_neighbours_are_not(make, tmp_path):
    executor, pid_file = make(time_s=0.5), tmp_path / "pid"
    orders = [order("add", x=1), order("never", pid_file=str(pid_file)), *(order("add", x=x) for x in range(2, 9))]
    outcomes = at_once(executor, orders)
    assert [o.status for o in outcomes] == [DONE, TIMEOUT, *[DONE] * 7]
    assert outcomes[1].message == "not finished after 0.5 s, the time limit of a task"
    assert 0.5 <= outcomes[1].wall_s < 10
    assert not alive(*pids_in(pid_file))


def test_the_time_limit_is_of_the_task_not_of_its_start_or_its_queue(make):
    executor = make(time_s=0.3)
    slow = {"slow_s": 0.5}
    outcomes = do(executor, *(order("rest", key=str(i), s=0.02, settings=slow) for i in range(20)))
    assert {o.status for o in outcomes} == {DONE}


def test_answers_that_wait_to_be_read_are_in_time(make):
    executor = make(time_s=0.3)
    do(executor, order("echo", value=0))
    executor.submit(order("repeat", key="small", text="a", times=1))
    time.sleep(0.6)
    assert collect(executor, 1)["small"].status == DONE
    executor.submit(order("repeat", key="more than fits a socket", text="a", times=8 << 20))
    time.sleep(0.6)
    assert collect(executor, 1)["more than fits a socket"].result == {"text": "a" * (8 << 20)}


def test_results_have_a_largest_size(make, monkeypatch):
    executor = make()
    large, unending = do(
        executor,
        order("repeat", key="large", text="a", times=local.ANSWER_BYTES + 1),
        order("answer_first", key="unending", text="a" * (1 << 20)),
    )
    assert (large.status, large.result) == (ERROR, {})
    assert large.message.startswith("ValueError: the result has 671088")
    assert unending.status == CRASHED
    monkeypatch.setattr(local, "ANSWER_BYTES", 1 << 10)
    (outcome,) = do(executor, order("answer_first", key="too much", text="a" * (1 << 20)))
    assert (outcome.status, outcome.message) == (CRASHED, "worker answered more than 2048 bytes")


def test_wait_keeps_its_own_time(make):
    executor = make()
    executor.submit(order("never"))
    start = time.monotonic()
    assert executor.wait(0.1) == []
    assert 0.1 <= time.monotonic() - start < 5
    assert executor.running() == ["never {}"]


# ---- memory


@pytest.mark.parametrize("how", ["numpy", "python", "mmap"])
def test_a_task_that_takes_too_much_memory_costs_itself_alone(make, how):
    executor = make(memory_mib=400)
    outcomes = at_once(executor, [order("add", x=1), order("fill", how=how), order("calls"), order("hold", mib=200)])
    assert [o.status for o in outcomes] == [DONE, MEMORY, DONE, DONE]
    assert outcomes[1].message.startswith("more memory than the limit of 400 MiB: ")
    assert outcomes[2].result["calls"] == 1, "another worker, for no need"


def test_what_the_tasks_inherit(make):
    (outcome,) = do(make(memory_mib=321), order("limits"))
    assert outcome.result == {"core": [0, 0], "data": [321 << 20] * 2, "stdin": 0}
    (outcome,) = do(make(), order("calls"))
    assert outcome.result["environment"]["OPENBLAS_NUM_THREADS"] == "1"
    assert outcome.result["environment"]["PYTHONSAFEPATH"] == "1"


# ---- death


def test_only_the_culprit_pays_for_a_death(make):
    """Tasks of all kinds in one queue: each is answered once, and as if it were alone."""
    ways = {
        "add": (DONE, {"x": 1}, ""),
        "fail": (ERROR, {}, "ZeroDivisionError: division by zero"),
        "end": (CRASHED, {"code": 3}, "worker ended by exit code 3: out of patience"),
        "kill": (CRASHED, {"number": 9}, "worker ended by signal SIGKILL; out of memory?"),
        "kill_group": (CRASHED, {}, "worker ended by signal SIGKILL; out of memory?"),
    }
    draw = random.Random(7)
    kinds = [draw.choice(["add"] * 26 + list(ways)) for _ in range(150)]
    assert set(kinds) == set(ways)
    executor = make(2)
    outcomes = at_once(executor, [order(kind, key=f"{i} {kind}", **ways[kind][1]) for i, kind in enumerate(kinds)])
    for outcome, kind in zip(outcomes, kinds, strict=True):
        assert (outcome.status, outcome.message) == (ways[kind][0], ways[kind][2])


def test_a_worker_killed_from_outside_costs_what_it_was_at(make, tmp_path):
    executor, pid_file = make(), tmp_path / "pid"
    do(executor, order("echo", value=0))
    executor.submit(order("never", pid_file=str(pid_file)))
    executor.submit(order("add", x=1))
    wait_until(lambda: pids_in(pid_file))
    os.kill(pids_in(pid_file)[0], signal.SIGKILL)
    outcomes = collect(executor, 2)
    assert outcomes[f"never {{'pid_file': {str(pid_file)!r}}}"].status == CRASHED
    assert outcomes["add {'x': 1}"].status == DONE


@pytest.mark.parametrize("who", ["worker", "supervisor"])
def test_a_worker_killed_while_idle_costs_nothing(make, who):
    executor = make()
    (outcome,) = do(executor, order("calls"))
    supervisor = executor._crew[0].process
    os.kill(outcome.result["pid"] if who == "worker" else supervisor.pid, signal.SIGKILL)
    os.waitid(os.P_PID, supervisor.pid, os.WEXITED | os.WNOWAIT)
    assert do(executor, order("add", x=1))[0].status == DONE


def test_a_supervisor_killed_takes_its_worker_along(make, tmp_path):
    executor, pid_file = make(), tmp_path / "pid"
    executor.submit(order("never", pid_file=str(pid_file)))
    executor.wait(0)
    wait_until(lambda: executor.wait(0.01) or pids_in(pid_file))
    executor._crew[0].process.kill()
    (outcome,) = executor.wait(20)
    assert (outcome.status, outcome.message) == (CRASHED, "worker ended by signal SIGKILL; out of memory?")
    wait_until(lambda: not alive(*pids_in(pid_file)))


def test_a_death_in_want_of_memory_is_one(make):
    executor = make()
    for words, status in [("terminate called: what():  std::bad_alloc", MEMORY), ("Killed", CRASHED)]:
        executor.submit(order("never", key="a"))
        wait_until(lambda: executor.wait(0.01) == [] and not executor._crew[0].loading)
        os.pwrite(executor._crew[0].log.fileno(), f"{words}\n".encode(), 0)
        executor._crew[0].process.kill()
        outcome = collect(executor, 1)["a"]
        assert outcome.status == status
        assert outcome.message.endswith(f": {words}")


@pytest.mark.parametrize(
    "text", ["12\n", "\udcff{no outcome\n" * 100, '{"serial": 0}\n', '{"serial": -1}\n', "[" * 9999 + "\n"]
)
def test_an_answer_that_is_no_outcome_costs_its_task(make, text):
    executor = make()
    text = text.encode("utf-8", "surrogateescape").decode("latin-1")
    outcomes = do(executor, order("add", x=1), order("answer_first", text=text), order("add", x=2), order("add", x=3))
    assert [o.status for o in outcomes] == [DONE, CRASHED, DONE, DONE]
    assert outcomes[1].message.startswith("worker answered what is no outcome: b")
    assert len(outcomes[1].message) < 900


def test_a_death_in_the_middle_of_an_answer_is_told_as_one(make):
    executor = make()
    broken, after = do(executor, order("break_off"), order("add", x=1))
    assert (broken.status, broken.message) == (CRASHED, "worker ended by exit code 5")
    assert after.status == DONE


def test_what_a_task_says_after_its_answer_costs_nothing(make):
    executor = make()
    whispered, _ = do(executor, order("whisper_later"), order("rest", s=0.01))
    assert whispered.status == DONE
    time.sleep(0.1)
    assert [o.status for o in do(executor, *(order("add", x=x) for x in range(3)))] == [DONE] * 3


@pytest.mark.parametrize("kind", ["come_back", "come_back_failing"])
def test_a_fork_that_comes_back_answers_nothing(make, kind):
    executor = make()
    orders = [order(kind if i % 2 else "add", key=str(i), **({} if i % 2 else {"x": 1})) for i in range(20)]
    outcomes = do(executor, *orders)
    assert [o.result for o in outcomes] == [{"sum": 1} if i % 2 else {"sum": 2} for i in range(20)]


# ---- what tasks leave running


@pytest.mark.parametrize("how", ["child", "escaped"])
@pytest.mark.parametrize("then, status", [("return", DONE), ("die", CRASHED), ("slay", CRASHED), ("stay", TIMEOUT)])
def test_what_a_task_leaves_running_is_gone_when_it_is_answered(make, tmp_path, how, then, status):
    executor, pid_file = make(time_s=0.5 if then == "stay" else 30), tmp_path / "pid"
    (outcome,) = do(executor, order("leave_running", how=how, pid_file=str(pid_file), then=then))
    assert outcome.status == status
    (left,) = pids_in(pid_file)
    assert not alive(left)
    assert do(executor, order("add", x=1))[0].status == DONE


def test_close_ends_everything_and_can_be_called_again(make, tmp_path):
    executor, pid_file = make(2), tmp_path / "pid"
    executor.submit(order("leave_running", how="escaped", pid_file=str(pid_file), then="stay"))
    executor.submit(order("never"))
    wait_until(lambda: executor.wait(0.01) == [] and pids_in(pid_file))
    supervisors = [worker.process.pid for worker in executor._crew]
    assert all(alive(pid) for pid in (*supervisors, *pids_in(pid_file)))
    start = time.monotonic()
    executor.close()
    assert time.monotonic() - start < local.END_S
    assert not any(alive(pid) for pid in (*supervisors, *pids_in(pid_file)))
    executor.close()


def test_workers_end_though_another_process_holds_their_pipes_open(make):
    executor = make()
    do(executor, order("echo", value=0))
    worker = executor._crew[0]
    copies = [os.dup(worker.process.stdin.fileno()), os.dup(worker.link.fileno())]
    start = time.monotonic()
    executor.close()
    assert time.monotonic() - start < local.END_S
    for copy in copies:
        os.close(copy)


def test_close_does_not_wait_for_a_supervisor_that_does_not_answer(make, monkeypatch):
    monkeypatch.setattr(local, "END_S", 0.2)
    executor = make()
    (outcome,) = do(executor, order("calls"))
    os.kill(executor._crew[0].process.pid, signal.SIGSTOP)
    executor.close()
    wait_until(lambda: not alive(outcome.result["pid"]))


PARENT = """
import os, sys, time
from hwsim.sweep.executors import Limits, Order
from hwsim.sweep.executors.local import LocalExecutor
executor = LocalExecutor(2, Limits())
for i, how in enumerate(["child", "escaped"]):
    inputs = {"how": how, "pid_file": sys.argv[1] + str(i), "then": "stay"}
    executor.submit(Order(key=how, evaluation="executor_tasks:evaluation", settings={}, kind="leave_running",
                          inputs=inputs))
print(*(worker.process.pid for worker in executor._crew), flush=True)
if sys.argv[2] == "forked" and os.fork() == 0:
    time.sleep(60)
    os._exit(0)
executor.wait()
"""


@pytest.mark.parametrize("how", ["alone", "forked"])
def test_everything_ends_with_the_executors_process(tmp_path, how):
    """Also where a fork of it holds open all that connects it to the workers."""
    files = [tmp_path / "pid0", tmp_path / "pid1"]
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, tmp_path / "pid", how],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        supervisors = [int(word) for word in process.stdout.readline().split()]
        wait_until(lambda: all(pids_in(file) for file in files))
        started = [*supervisors, *pids_in(files[0]), *pids_in(files[1])]
        assert all(alive(pid) for pid in started)
        process.kill()
        process.wait()
        killed = time.monotonic()
        wait_until(lambda: not any(alive(pid) for pid in started))
        assert time.monotonic() - killed < 5
    finally:
        with contextlib.suppress(ProcessLookupError):  # unless a fork is left
            os.killpg(process.pid, signal.SIGKILL)
        with process:
            pass


def test_a_thread_that_ends_takes_no_worker_along(make):
    """The kernel sends its signal for the end of the thread that started a process."""
    executor = make()
    thread = threading.Thread(target=lambda: do(executor, order("calls")))
    thread.start()
    thread.join()
    worker = executor._crew[0]
    do(executor, order("rest", s=0.05))
    assert executor._crew == [worker]


# ---- workers that do not start


def test_an_evaluation_that_cannot_be_loaded_is_told_once(make):
    executor = make(2)
    executor.submit(order("add", x=1, settings={"trouble": "raise"}))
    rule = (
        "^3 workers in a row ended before they had loaded executor_tasks:evaluation: worker ended by exit code 1: "
        "thing; see that it can be imported within 1000 MiB of memory$"
    )
    with pytest.raises(InputError, match=rule):
        executor.wait(30)


@pytest.mark.parametrize("trouble, words", [("exit", "exit code 7"), ("hang", r"not ready after 0\.2 s")])
def test_workers_that_never_get_ready_end_in_a_message(make, monkeypatch, trouble, words):
    monkeypatch.setattr(local, "START_S", 0.2 if trouble == "hang" else 30)
    executor = make()
    executor.submit(order("add", x=1, settings={"trouble": trouble}))
    with pytest.raises(InputError, match=words):
        executor.wait(30)


def test_a_memory_limit_too_small_to_start_ends_in_a_message(make):
    executor = make(memory_mib=1)
    # a start alone may fit into what the interpreter has taken before the limit holds
    executor.submit(order("add", x=1, settings={"trouble": "large"}))
    with pytest.raises(InputError, match="within 1 MiB of memory"):
        executor.wait(30)


def test_false_starts_that_are_not_in_a_row_are_none(make, tmp_path):
    executor, flags = make(), [tmp_path / f"{i}" for i in range(local.FALSE_STARTS + 1)]
    for flag in flags:
        settings = {"trouble": "once", "flag": str(flag)}
        outcomes = do(executor, *(order("add", x=x, settings=settings) for x in range(3)))
        assert {o.status for o in outcomes} == {DONE}
    assert all(flag.exists() for flag in flags)


def test_what_the_system_refuses_is_one_line(make, monkeypatch):
    def full(*_args, **_options):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(subprocess, "Popen", full)
    with pytest.raises(InputError, match="Too many open files; no further worker can be started; use fewer"):
        make().submit(order("add", x=1))


def test_modules_in_the_current_folder_hide_none_of_the_workers(make, tmp_path, monkeypatch):
    for name in ("queue", "random", "colorsys", "json"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('hidden')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    (outcome,) = do(make(), order("shadowed"))
    assert outcome.status == DONE, outcome.message
    assert not outcome.result["home"].startswith(str(tmp_path))
    assert outcome.result["path"][-1] == str(tmp_path)
