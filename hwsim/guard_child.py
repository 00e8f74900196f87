"""The supervisor between hwsim and a tool; guard.py starts it by its path, without site packages.

argv: memory limit in bytes, CPU limit in seconds, then the tool and its arguments. It leads the process group. Its
standard input is a pipe whose other end hwsim alone holds: when that end closes, hwsim is gone, however it ended, and
the whole group is killed. Its exit status is the tool's, 128 + n where signal n ended the tool.
"""

import _thread
import os
import resource
import signal
import sys


def end_with_parent():
    os.read(0, 1)
    os.killpg(0, signal.SIGKILL)


def limit(kind, most):
    """Only a privileged process may raise a limit that is in force already."""
    hard = resource.getrlimit(kind)[1]
    least = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (least, least))


def become_tool(memory, seconds, argv):
    """In the fork: limits first, so that they hold for the tool and all that it starts, but not for the supervisor."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and a tool would inherit that
    limit(resource.RLIMIT_CPU, seconds)
    limit(resource.RLIMIT_DATA, memory)
    os.execvp(argv[0], argv)  # noqa: S606 - there is no shell and should be none


def main(memory, seconds, *argv):
    tool = os.fork()
    if tool == 0:
        try:
            become_tool(int(memory), int(seconds), argv)
        except OSError as error:
            print(f"{argv[0]}: {error.strerror}", flush=True)
        finally:
            os._exit(127)
    _thread.start_new_thread(end_with_parent, ())
    status = os.waitstatus_to_exitcode(os.waitpid(tool, 0)[1])
    os._exit(status if status >= 0 else 128 - status)  # the other thread still waits


if __name__ == "__main__":
    main(*sys.argv[1:])
