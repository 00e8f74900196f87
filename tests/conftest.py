"""For all tests."""

import signal

# a shell starts its background jobs with interrupts ignored, and so would every child that tests interrupt
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
