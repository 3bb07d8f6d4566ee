import signal

# Whatever a shell starts in the background is told to ignore SIGINT, and so is whatever that starts: tests that
# interrupt a process would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)
