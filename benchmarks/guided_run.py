"""A guided run of one peer, as a user would write it, in a process of its own: what it takes to begin, to draw, and in memory.

    python -m benchmarks.guided_run PEER NETWORK FILE THREADS       FILE as benchmarks.networks.Network.write leaves it

It loads, prepares, draws once and prints a line; it draws again for every line that it is sent; at the end of its input it prints
what it took as JSON and writes its images beside FILE.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import numpy as np

IMAGES = "{}.{}.npy"  # of FILE and PEER
_ROOT = Path(__file__).resolve().parent.parent


class Process:
    """The process from outside. `cold` is the seconds from its start to its first images.

    module: this one, or another that answers as it does. Raises: RuntimeError with what it printed, where it fails.
    """

    def __init__(
        self, peer: str, network: str, file: Path, threads: int, scratch: Path, module: str = "benchmarks.guided_run"
    ) -> None:
        self._log = (scratch / "log").open("w+", encoding="utf-8")
        self._images = Path(IMAGES.format(file, peer))
        # Nothing compiled before is found again: a cold start is one.
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TORCHINDUCTOR_CACHE_DIR": str(scratch / "inductor")}
        started = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, peer, network, str(file), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
            cwd=_ROOT,
        )
        self._answer()
        self.cold = time.perf_counter() - started

    def draw(self) -> None:
        """One run more."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self._answer()

    def finish(self) -> tuple[dict[str, Any], np.ndarray]:
        """({"prepare_s", "peak_mib"}, images float32 [B, C, H, W]); the process is over."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        took = json.loads(self._answer())
        self._process.wait()
        self._log.close()
        return took, np.load(self._images)

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._log.seek(0)
            raise RuntimeError(f"the process ended with {self._process.returncode}: {self._log.read()[-2000:]}")
        return line


def by_generate(network: Any, weights: Any, images: int, threads: int) -> Callable[[], Any]:
    """Our run: `fastcond.generate`, its last x_0."""
    import torch

    from benchmarks.networks import GUIDANCE, SEED, STEPS
    from fastcond.engine import generate

    torch.set_num_threads(threads)
    model, labels = network.ours(weights).to(memory_format=torch.channels_last), network.labels(images)

    def run() -> Any:
        kept = {}
        generate(
            model,
            labels,
            guidance=GUIDANCE,
            sampler="ddim",
            steps=STEPS,
            seed=SEED,
            batch_size=images,
            on_step=lambda row, first, x_0: kept.update(x_0=x_0),
        )
        return kept["x_0"]

    return run


def by_scheduler(prepare: Any, network: Any, weights: Any, noise: Any, threads: int) -> Callable[[], Any]:
    """Theirs: both halves of a batch, classifier-free guidance, diffusers' DDIMScheduler."""
    import torch
    from diffusers import DDIMScheduler

    from benchmarks.networks import GUIDANCE, STEPS

    # The schedule and the spacing that ours has; everything else as it comes.
    scheduler = DDIMScheduler(timestep_spacing="trailing", prediction_type="v_prediction")
    scheduler.set_timesteps(STEPS)
    labels = network.labels(len(noise))
    both = torch.cat([labels, torch.full_like(labels, network.config.null_label)])
    evaluate = prepare(network, weights, scheduler.timesteps, both, threads)

    def run() -> Any:
        x = noise
        for row, timestep in enumerate(scheduler.timesteps):
            cond, uncond = evaluate(torch.cat([x, x]), row).chunk(2)
            x = scheduler.step(uncond + GUIDANCE * (cond - uncond), timestep, x).prev_sample
        return x

    return run


def peak_mib() -> float:
    """The most memory that this process has held. Not getrusage's, which begins with that of the process it was forked from."""
    status = Path("/proc/self/status")
    if status.is_file():
        found = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE)
        if found:
            return int(found[1]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def own_output() -> TextIO:
    """What was standard output, for the answers alone: libraries print where they like, and from here on that is the log."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return answers


def main(peer: str, name: str, file: str, threads: int) -> None:
    answers = own_output()
    import torch

    from benchmarks.networks import NETWORKS, read

    weights, noise = read(Path(file))
    started = time.perf_counter()
    if peer == "ours":
        run = by_generate(NETWORKS[name], weights, len(noise), threads)
    else:
        from benchmarks.peers import PEERS

        run = by_scheduler(PEERS[peer].prepare, NETWORKS[name], weights, noise, threads)
    prepared = time.perf_counter() - started
    with torch.no_grad():
        images = run()
        print(file=answers)
        for _ in sys.stdin:
            images = run()
            print(file=answers)
    np.save(IMAGES.format(file, peer), images.contiguous().numpy())
    print(json.dumps({"prepare_s": prepared, "peak_mib": peak_mib()}), file=answers)


if __name__ == "__main__":
    main(*sys.argv[1:4], threads=int(sys.argv[4]))
