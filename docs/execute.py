"""Executes the notebooks of the documentation: a cell that fails ends it with its traceback.

    python docs/execute.py                    # all of them, and leaves the files as they are
    python docs/execute.py --write first_look # one of them, and keeps its new outputs

Each runs in a kernel and a folder of its own, so that what it writes goes away with it.
"""

import argparse
import contextlib
import os
import secrets
import shutil
import string
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parent / "notebooks"
_QUIET = {"record_timing": False, "coalesce_streams": True}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="of notebooks, without .ipynb; else all")
    parser.add_argument("--write", action="store_true", help="keep the new outputs")
    options = parser.parse_args()
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # What XLA logs is of this machine.
    os.environ["COLUMNS"] = "120"  # Of the tables that are printed.
    # Cells run the command `lazyinit` of this environment.
    os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    for path in paths_of(options.names):
        start = time.perf_counter()
        notebook = nbformat.read(path, as_version=4)
        with folder_of_its_own() as folder:
            place = {"metadata": {"path": folder}}
            NotebookClient(notebook, timeout=300, resources=place, **_QUIET).execute()
        # Paths as a reader has them: from the folder where the notebook runs.
        notebook = nbformat.reads(nbformat.writes(notebook).replace(f"{folder}/", ""), as_version=4)
        print(f"{path.name}: {time.perf_counter() - start:.0f} s", flush=True)
        if options.write:
            notebook.metadata["language_info"] = {"name": "python"}  # Without the minor version.
            nbformat.write(notebook, path)


@contextlib.contextmanager
def folder_of_its_own() -> Iterator[str]:
    """Makes a folder for a while, without digits in its name: views fold what differs in digits."""
    name = "".join(secrets.choice(string.ascii_lowercase) for _ in range(12))
    folder = Path(tempfile.gettempdir()).resolve() / f"lazyinit-{name}"
    folder.mkdir()
    try:
        yield str(folder)
    finally:
        shutil.rmtree(folder)


def paths_of(names: list[str]) -> list[Path]:
    """Returns the files of the notebooks with these names, or of all."""
    known = {path.stem: path for path in sorted(NOTEBOOKS.glob("*.ipynb"))}
    unknown = sorted(set(names) - set(known))
    if unknown or not known:
        raise SystemExit(f"{NOTEBOOKS}: wanted some of {sorted(known)}, got {unknown}")
    return [known[name] for name in names or known]


if __name__ == "__main__":
    main()
