"""Programs in processes of their own, which do not import anew what many programs need.

JAX and this package take two seconds to import, PyTorch and transformers four. So a process that
has them imported, and has done nothing else, stays for all tests, and forks a child for each program.
"""

import atexit
import contextlib
import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

SERVER = """
import atexit, json, os, signal, sys, traceback, warnings
exec(sys.argv[1])
warnings.simplefilter("ignore")  # JAX warns of each fork: its threads would be lost, if it had any.

def run(program, args, folder):
    code = 1
    signal.alarm(240)  # Seconds, until which one may wait for another that never comes.
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT), number)
        warnings.resetwarnings()
        sys.argv = ["-c", *args]
        exec(program, {"__name__": "__main__"})
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)

for line in sys.stdin:
    children = []
    for program, args, folder in json.loads(line):
        children.append(os.fork())
        if not children[-1]:
            run(program, args, folder)
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(c, 0)[1]) for c in children]), flush=True)
"""
JAX = "import jax, numpy, lazyinit"


@functools.cache
def _server(imports, env):
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, imports],
        env=os.environ | dict(env) | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    ended = contextlib.ExitStack()
    ended.enter_context(server)  # Closes its input, at which it ends, and waits for that.
    atexit.register(ended.close)
    return server


def run_together(program, several, *, imports=JAX, env=()):
    """Runs Python source in processes at the same time; returns what each wrote to stdout.

    Args:
      program: the source.
      several: for each process what it finds in ``sys.argv``.
      imports: what all processes have imported already.
      env: pairs of names and values for the environment that they are started in.

    Raises:
      AssertionError: one of them ends with an error, with what all wrote to stderr.
    """
    server = _server(imports, tuple(env))
    with tempfile.TemporaryDirectory() as here:
        folders = [Path(here, str(n)) for n in range(len(several))]
        for folder in folders:
            folder.mkdir()
        asked = [
            (program, [*map(str, args)], str(folder))
            for args, folder in zip(several, folders, strict=True)
        ]
        print(json.dumps(asked), file=server.stdin, flush=True)
        codes = json.loads(server.stdout.readline())
        assert not any(codes), f"{codes}" + "".join(
            (folder / "err").read_text()[-2000:] for folder in folders
        )
        return [(folder / "out").read_text() for folder in folders]


def run(program, *args, **how):
    """Runs Python source in one process; see ``run_together``."""
    (out,) = run_together(program, [args], **how)
    return out
