"""Makes an environment for each peer, with exact versions, in .cache/peers/NAME. What is there already is left alone.

    python benchmarks/peers/environments.py [--only NAME …]

llama.cpp is compiled for the processor of this machine (about 25 minutes with one job; CMAKE_BUILD_PARALLEL_LEVEL sets how many) and its wheel is
kept in .cache/peers/wheels: on another processor remove that folder. A C++ compiler is needed; cmake and ninja come through pip where they are missing.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import click

from potatod import machine

ROOT = Path(__file__).resolve().parent.parent.parent
PLACE = ROOT / ".cache" / "peers"
WHEELS = PLACE / "wheels"

LLAMA = "llama-cpp-python==0.3.36"
#: What they have in common with us has our versions, so that what differs is the streaming. What is not named here is held by constraints.txt.
_HUGGING_FACE = ("torch==2.13.0", "transformers==5.23.0", "accelerate==1.15.0", "safetensors==0.8.0", "numpy==2.4.6", "psutil==7.2.2")
PINS: dict[str, tuple[str, ...]] = {
    "airllm": (*_HUGGING_FACE, "airllm==4.0.0", "scipy==1.17.1", "sentencepiece==0.2.3", "tqdm==4.70.1"),
    "accelerate": _HUGGING_FACE,
    "llama.cpp": (LLAMA, "numpy==2.4.6", "diskcache==5.6.3", "Jinja2==3.1.6", "typing_extensions==4.16.0"),
}
#: llama.cpp's default build otherwise: optimised, for this processor, with OpenMP. The library for images is left out.
_CMAKE_ARGS = "-DLLAVA_BUILD=OFF"
#: Where a processor says that it has AMX the system may still not allow it, and llama.cpp ends there: built for everything else.
_WITHOUT_AMX = " -DGGML_NATIVE=OFF" + "".join(
    f" -DGGML_{name}=ON" for name in ("AVX2", "FMA", "F16C", "BMI2", "AVX512", "AVX512_VBMI", "AVX512_VNNI", "AVX512_BF16")
)


def python(name: str) -> Path:
    """The interpreter of a peer's environment."""
    return PLACE / name / "bin" / "python"


def make(name: str) -> Path:
    """The peer's environment; made anew when its pins have changed. Returns its interpreter."""
    pins = "\n".join(PINS[name])
    stamp = PLACE / name / "pins.txt"
    if stamp.exists() and stamp.read_text() == pins:
        click.echo(f"{name}: there already")
        return python(name)
    click.echo(f"{name}: {', '.join(PINS[name])} …")
    venv.create(PLACE / name, clear=True, with_pip=True)
    if LLAMA in PINS[name]:
        _build_llama()
    pip = [python(name), "-m", "pip", "install", "-q", "--find-links", WHEELS, "-c", ROOT / "constraints.txt"]
    subprocess.run([*pip, *PINS[name]], check=True)
    stamp.write_text(pins)
    return python(name)


def _build_llama() -> None:
    """Its wheel into WHEELS, unless it is there."""
    project, version = LLAMA.replace("-", "_").split("==")
    if list(WHEELS.glob(f"{project}-{version}-*.whl")):
        return
    click.echo(f"{LLAMA}: compiling, which takes long …")
    WHEELS.mkdir(parents=True, exist_ok=True)
    jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count() or 1))
    arguments = _CMAKE_ARGS + (_WITHOUT_AMX if "amx_tile" in machine.flags() else "")
    environment = os.environ | {"CMAKE_ARGS": arguments, "CMAKE_BUILD_PARALLEL_LEVEL": jobs}
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-cache-dir", "--no-deps", "--no-binary", "llama-cpp-python", "-w", WHEELS, LLAMA]
    subprocess.run(command, check=True, env=environment)


@click.command()
@click.option("--only", multiple=True, type=click.Choice(list(PINS)), help="Make this one only; may be given again.")
def main(only: tuple[str, ...]) -> None:
    """Make the peers' environments."""
    for name in only or PINS:
        make(name)


if __name__ == "__main__":
    main()
