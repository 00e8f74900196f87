"""Tasks that behave in every way, for the tests of executors. Workers import this by name, so it imports little."""

import contextlib
import os
import signal
import sys
import threading
import time
from pathlib import Path

from hwsim.sweep.tasks import Evaluation

CALLS = []
SLEEP = ["sleep", "60"]


def add(x, y=1):
    CALLS.append(x)
    return {"sum": x + y}


def calls():
    """How many additions this process has done, and where it is."""
    return {"calls": len(CALLS), "pid": os.getpid(), "path": sys.path, "environment": dict(os.environ)}


def echo(value):
    return {"value": value}


def repeat(text, times):
    return {"text": text * times}


def rest(s):
    time.sleep(s)
    return {"pid": os.getpid()}


def never(pid_file=None):
    if pid_file:
        note(pid_file, os.getpid())
    while True:
        time.sleep(60)


def numbers():
    import numpy as np

    return {"whole": np.int64(3), "half": np.float32(0.5), "yes": np.bool_(True), "list": np.arange(3), "inner": [{}]}


def no_result(what):
    return {
        "nan": {"a": float("nan")},
        "inner": {"a": [1, {"b": float("inf")}]},
        "list": [1],
        "object": {"a": object()},
    }[what]


def refuse():
    from models.unit import InputError

    raise InputError("K=7 does not fit\nat all")


def fail():
    return 1 / 0


def leave():
    sys.exit("enough")


def unprintable():
    class Mute(Exception):
        def __str__(self):
            raise RuntimeError("no words")

    raise Mute


def end(code):
    print("out of patience", flush=True)
    os._exit(code)


def kill(number):
    os.kill(os.getpid(), number)
    time.sleep(60)


def kill_group():
    os.killpg(0, signal.SIGKILL)


def noise(mib):
    print("noise " * (mib << 20 // 6))
    os.write(1, b"more noise\n")
    os.write(2, b"and more\n")
    return {}


def fill(how):
    """Take all memory there is."""
    if how == "numpy":
        import numpy as np

        return {"sum": float(np.ones(1 << 28).sum())}
    if how == "python":
        block = []
        while True:
            block.append(bytearray(1 << 20))
    import mmap

    return {"length": len(mmap.mmap(-1, 1 << 33, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))}


def hold(mib):
    return {"length": len(b"x" * (mib << 20))}


def limits():
    import resource

    core, data = resource.getrlimit(resource.RLIMIT_CORE), resource.getrlimit(resource.RLIMIT_DATA)
    return {"core": core, "data": data, "stdin": len(sys.stdin.buffer.read())}


def come_back():
    """Both processes give a result."""
    return {"sum": int(os.fork() != 0)}


def come_back_failing():
    if os.fork() == 0:
        raise RuntimeError("the child")
    return {"sum": 1}


def note(path, pid):
    with Path(path).open("a") as file:
        file.write(f"{pid}\n")


def leave_running(how, pid_file, then="return"):
    """Processes that outlive the task: a child, or one two forks away in a session of its own."""
    if os.fork() == 0:
        if how == "escaped":
            os.setsid()
            if os.fork():
                os._exit(0)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        note(pid_file, os.getpid())
        os.execvp(SLEEP[0], SLEEP)  # noqa: S606 - there is no shell
    with contextlib.suppress(FileNotFoundError):
        while not Path(pid_file).read_text().endswith("\n"):
            time.sleep(0.002)
    while not Path(pid_file).exists():
        time.sleep(0.002)
    return {"return": dict, "die": lambda: os._exit(4), "rest": lambda: rest(1), "slay": kill_group, "stay": never}[
        then
    ]()


def answer_first(text):
    """An answer of one's own before the true one, on every socket that this process has."""
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if str(link.readlink()).startswith("socket:"):
                os.write(int(link.name), text.encode())
                break
    return {}


def break_off():
    answer_first('{"serial"')
    os._exit(5)


def whisper_later():
    """A thread that speaks when its task is answered."""
    threading.Thread(target=lambda: (time.sleep(0.05), answer_first("later\n"))).start()
    return {}


def shadowed():
    import colorsys  # of the standard library, and nothing else imports it

    return {"home": colorsys.__file__, "path": sys.path}


FUNCTIONS = (
    *(
        add,
        answer_first,
        break_off,
        calls,
        come_back,
        come_back_failing,
        echo,
        end,
        fail,
        fill,
        hold,
        kill,
        kill_group,
        leave,
    ),
    *(
        leave_running,
        limits,
        never,
        no_result,
        noise,
        numbers,
        refuse,
        repeat,
        rest,
        shadowed,
        unprintable,
        whisper_later,
    ),
)


def evaluation(settings):
    if "log" in settings:
        note(settings["log"], os.getpid())
    if settings.get("trouble") == "exit":
        os._exit(7)
    if settings.get("trouble") == "raise":
        raise ImportError("no such\nthing")
    if settings.get("trouble") == "large":
        settings["kept"] = bytearray(64 << 20)
    if settings.get("trouble") == "hang":
        time.sleep(60)
    if settings.get("trouble") == "once":
        with contextlib.suppress(FileExistsError):
            os.close(os.open(settings["flag"], os.O_CREAT | os.O_EXCL))
            os._exit(7)
    time.sleep(settings.get("slow_s", 0))
    return Evaluation(functions={f.__name__: f for f in FUNCTIONS}, check=None, plan=None, combine=None, version=None)
