"""
A stand-in for AWS's Lambda base image, for machines that cannot reach its registry: made from Debian packages.

It has Debian's Python, the real runtime client and boto3, and Lambda's folders and search path. It is no Amazon Linux:
what compiled code links to, and versions of system libraries, differ. What `sam build` made and how layers lie is seen.
"""

from __future__ import annotations

import hashlib
import io
import os
import platform
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

# The suite of Debian that has the Python of each runtime.
_SUITES = {"python3.13": "trixie"}
# libstdc++6 is the runtime client's: without it that fails with "'NoneType' has no attribute 'next'".
_PACKAGES = (
    *("base-files", "bash", "coreutils", "dash", "grep", "libc-bin", "libgcc-s1", "libstdc++6", "media-types"),
    *("netbase", "sed", "tzdata"),
)
_BOOTSTRAP = """\
#!/bin/sh
# Lambda's search path: the function, the layers, what the runtime brings. The execution environment's name makes the
# runtime client wait in a thread, so that the main thread can handle signals.
runtime=/var/lang/lib/{runtime}/site-packages
export AWS_EXECUTION_ENV=AWS_Lambda_{runtime}
export PYTHONPATH=/var/task:/opt/python/lib/{runtime}/site-packages:/opt/python:$runtime
exec /usr/bin/{runtime} -P -m awslambdaric "$_HANDLER"
"""
# How `docker import` describes an image.
CHANGES = (
    "ENV PATH=/var/lang/bin:/usr/local/bin:/usr/bin:/bin:/opt/bin",
    "ENV LANG=C.UTF-8",
    "ENV TZ=:UTC",
    (
        "ENV LD_LIBRARY_PATH=/var/lang/lib:/lib64:/usr/lib64:/var/runtime:/var/runtime/lib:"
        "/var/task:/var/task/lib:/opt/lib"
    ),
    "ENV LAMBDA_TASK_ROOT=/var/task",
    "ENV LAMBDA_RUNTIME_DIR=/var/runtime",
    "WORKDIR /var/task",
)


class LambdaImageError(RuntimeError):
    """The stand-in cannot be made here; the text says why and what to do."""


def stand_in(runtime: str, cache: Path, repository: Path) -> Path:
    """
    Return the stand-in for a runtime such as "python3.13" as the archive of its files, made unless it is in the cache.

    Args: cache: the folder that keeps it; repository: where requirements/dev.txt pins the runtime client and boto3, and
        where .venv-uv holds uv, which installs them.
    Raises: LambdaImageError. Blocks for 10 to 20 seconds where it is made.
    """
    if runtime not in _SUITES:
        raise LambdaImageError(f"no stand-in is known for {runtime}, only for {', '.join(_SUITES)}")
    pins = repository / "requirements" / "dev.txt"
    recipe = hashlib.sha256(Path(__file__).read_bytes() + pins.read_bytes()).hexdigest()[:12]
    prefix = f"{runtime}-{platform.machine()}-"
    archive = cache / f"{prefix}{recipe}.tar"
    if not archive.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix="making-") as scratch:
            packages, installed, made = (Path(scratch) / name for name in ("packages.tar", "installed", "image.tar"))
            _extract_packages(runtime, packages)
            _install_runtime(runtime, installed, repository, pins)
            _add_runtime(runtime, packages, installed, made)
            made.rename(archive)
        for old in cache.glob(f"{prefix}*.tar"):
            if old != archive:
                old.unlink(missing_ok=True)
    return archive


def _extract_packages(runtime: str, archive: Path) -> None:
    if shutil.which("mmdebstrap") is None:
        raise LambdaImageError("the stand-in for AWS's image is made by the package mmdebstrap: install it")
    settings = archive.with_name("apt.conf")  # proxies, certificates and the like, as this machine's own apt has them
    found = _run("apt-config", "dump", "Acquire::http", "Acquire::https", "Acquire::Check-Valid-Until",
                 "Acquire::Check-Date", "Acquire::Retries")  # fmt: skip
    settings.write_text(found)
    packages = ",".join([*_PACKAGES, runtime])
    _run(
        *("mmdebstrap", "--quiet", "--variant=extract", f"--include={packages}", f"--aptopt={settings}"),
        *(_SUITES[runtime], str(archive), _mirror()),
    )


def _mirror() -> str:
    """Return where this machine's own apt fetches Debian's packages from."""
    listed = _run("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Origin: Debian",
                  "Label: Debian", "Component: main")  # fmt: skip
    mirrors = listed.split()
    if not mirrors:
        raise LambdaImageError(
            "apt's sources on this machine name no mirror of Debian to make the stand-in from, or `apt-get update` was "
            "never run; on another distribution, let the Docker engine pull AWS's image"
        )
    return mirrors[0]


def _install_runtime(runtime: str, target: Path, repository: Path, pins: Path) -> None:
    _run(
        *(str(repository / ".venv-uv" / "bin" / "uv"), "pip", "install", "--quiet", "--target", str(target)),
        *("--python-version", runtime.removeprefix("python"), "--only-binary", ":all:", "--constraint", str(pins)),
        *("awslambdaric", "boto3"),
        UV_PYTHON_DOWNLOADS="never",
    )


def _add_runtime(runtime: str, packages: Path, installed: Path, archive: Path) -> None:
    """Write the image's archive: the packages' files and the runtime's."""
    files = {
        "./var/runtime/bootstrap": (_BOOTSTRAP.format(runtime=runtime).encode(), 0o755),
        "./etc/apt/apt.conf.d/99mmdebstrap": (b"", 0o644),  # this machine's own settings are not the image's
    }
    authorities = Path("/etc/ssl/certs/ca-certificates.crt")
    if authorities.exists():
        files["./etc/ssl/certs/ca-certificates.crt"] = authorities.read_bytes(), 0o644

    def owned_by_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = "root"
        return member

    with tarfile.open(packages, "r|") as source, tarfile.open(archive, "w") as image:
        for member in source:
            if member.name not in files:  # an engine refuses an archive that has a name twice
                image.addfile(member, source.extractfile(member) if member.isfile() else None)
        for folder in ("./var/task", "./var/runtime", "./var/lang"):
            member = tarfile.TarInfo(folder)
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            image.addfile(member)
        image.add(installed, f"./var/lang/lib/{runtime}/site-packages", filter=owned_by_root)
        for name, (content, mode) in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), mode
            image.addfile(member, io.BytesIO(content))


def _run(*command: str, **variables: str) -> str:
    try:
        result = subprocess.run(
            command, env={**os.environ, **variables}, capture_output=True, text=True, timeout=600, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LambdaImageError(f"the stand-in for AWS's image cannot be made: {error}") from error
    if result.returncode:
        raise LambdaImageError(
            f"the stand-in for AWS's image cannot be made: {command[0]} failed: {result.stderr.strip()[-2000:]}"
        )
    return result.stdout
