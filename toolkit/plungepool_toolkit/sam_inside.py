"""
What only the SAM CLI knows: a script that `sam_local` runs by the SAM CLI's own Python. Answers are JSON.

    python -P sam_inside.py QUESTION ARGUMENTS      the name of a function below; its arguments as a JSON list

The SAM CLI lives in a virtual environment of its own, with the client library of Docker; the engine that is asked here
is the one that it would choose. Its names are private ones of the version that requirements/sam.txt pins.
-P: what lies beside this file is not for that Python.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any


def functions(template: str, parameters: dict[str, str]) -> list[dict[str, str]]:
    """Return the functions of a template: logical id, name of the folder of its code, runtime, base image."""
    from samcli.lib.providers.sam_function_provider import (  # type: ignore[import-not-found]
        SamFunctionProvider,
    )
    from samcli.lib.providers.sam_stack_provider import SamLocalStackProvider  # type: ignore[import-not-found]
    from samcli.local.docker.lambda_image import LambdaImage, Runtime  # type: ignore[import-not-found]

    stacks, _ = SamLocalStackProvider.get_stacks(template, parameter_overrides=parameters)
    found = []
    for function in SamFunctionProvider(stacks, ignore_code_extraction_warnings=True).get_all():
        tag = Runtime.get_image_name_tag(function.runtime, function.architecture)
        found.append(
            {
                "logical_id": function.name,
                "folder": Path(function.codeuri).name,
                "runtime": function.runtime,
                "image": f"{LambdaImage._INVOKE_REPO_PREFIX}/{tag}",
            }
        )
    return found


def engine() -> dict[str, str] | None:
    """Return what the engine calls itself and where its containers find this machine; None if none answers."""
    try:
        client = _client()
        network = client.api.inspect_network("bridge")["IPAM"]["Config"][0]
        return {"version": client.version()["Version"], "gateway": network["Gateway"], "network": network["Subnet"]}
    except Exception:  # noqa: BLE001  whatever is wrong with it, there is no engine to use
        return None


def has(image: str) -> bool:
    """Return whether the engine has an image."""
    return bool(_client().images.list(name=image))


def pull(image: str) -> str | None:
    """Pull an image; return None, or why it is unavailable."""
    import docker  # type: ignore[import-untyped]

    name, _, tag = image.rpartition(":")
    try:
        _client().images.pull(name, tag)
    except docker.errors.DockerException as error:
        return str(getattr(error, "explanation", None) or error)  # what the engine says, without the address asked
    return None


def load(image: str, archive: str, changes: Sequence[str]) -> None:
    """Import an archive of files as an image."""
    name, _, tag = image.rpartition(":")
    result = _client().api.import_image(archive, repository=name, tag=tag, changes=list(changes))
    problems = [line for line in str(result).splitlines() if '"error' in line]
    if problems:
        raise OSError("; ".join(problems))


def built_images() -> list[str]:
    """Return the images that SAM has made of base images and layers, by name."""
    from samcli.local.docker.lambda_image import LambdaImage

    client = _client()
    return [
        tag for image in client.images.list() for tag in image.tags if tag.startswith(LambdaImage._SAM_CLI_REPO_NAME)
    ]


def tidy(variable: str, images: Sequence[str]) -> list[str]:
    """
    Remove the containers that have an environment variable ("NAME=value"), and images; return the containers' names.
    """
    import docker

    client = _client()
    left = [each for each in client.containers.list(all=True) if variable in (each.attrs["Config"]["Env"] or [])]
    for container in left:
        container.remove(force=True)
    for image in images:
        with contextlib.suppress(docker.errors.ImageNotFound):
            client.images.remove(image, force=True)
    return [container.name for container in left]


def _client() -> Any:
    from samcli.local.docker.utils import get_validated_container_client  # type: ignore[import-not-found]

    return get_validated_container_client()


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    questions = {each.__name__: each for each in (functions, engine, has, pull, load, built_images, tidy)}
    print(json.dumps(questions[sys.argv[1]](*json.loads(sys.argv[2]))))
