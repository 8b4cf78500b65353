"""What privacy costs: our step against the same kernel without it, stock PEFT, and Opacus.

Rules.
- One process and one thread, arms in turns; CPU seconds, or wall seconds with a synchronised device
  on a GPU. Memory is measured in a process of its own for each arm.
- Exactness is measured on the same models against brute force: stock layers, one record at a time.

    ./run bench dp --check
"""

import dataclasses
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks import dp_arms
from benchmarks.dp_accounting import measure as accounting
from benchmarks.dp_arms import ARMS, Case
from benchmarks.harness import Figure, Options, at_least, at_most, cpu_seconds, interleaved, main, median, ratio
from wardround_client.randomness import KeystreamRandomness, new_round_seed
from wardround_client.training.dpsgd import PrivateStep, record_losses
from wardround_common.models import locate_model

ON_GPU = torch.cuda.is_available()
OVERHEAD = 1.10 if ON_GPU else 1.05
"""Private step over the same kernel; on a GPU kernel launches are part of it."""


def measure(options: Options) -> Iterator[Figure]:
    """Yield every figure of the private step."""
    torch.set_num_threads(1)
    minilm, smollm2 = cases(options)
    repeat = options.size(7, 1)
    yield from _all_linear(minilm, repeat, hooks_bar=1.10, ghost_bar=1.5)
    yield from _all_linear(smollm2, options.size(5, 1), hooks_bar=1.10, ghost_bar=1.5)
    for case in (minilm, smollm2):
        few = dataclasses.replace(case, name=f"{case.name}, q and v, r=16", rank=16, all_linear=False)
        found = _timed(few, ("ours", "stock"), options.size(5, 1))
        yield ratio(f"private step / stock PEFT ({few.name})", found["ours"], found["stock"], bar=at_most(1.05))
        frozen = dataclasses.replace(case, name=f"{case.name}, A frozen", frozen_a=True)
        found = _timed(frozen, ("ours", "kernel", "stock"), options.size(3, 1))
        yield ratio(f"private step / same kernel ({frozen.name})", found["ours"], found["kernel"])
        yield ratio(f"private step / stock PEFT ({frozen.name})", found["ours"], found["stock"])
    yield noise_share(minilm, repeat)
    yield from exactness(dataclasses.replace(minilm, rows=6, length=24))
    yield from memory(minilm)
    yield from accounting(options)


def cases(options: Options) -> tuple[Case, Case]:
    """Return the two all-linear cases."""
    mini, smol = locate_model("minilm", offline=True), locate_model("smollm2", offline=True)
    first = Case(name="MiniLM 32×128", folder=mini, rows=32, length=128, rank=8, all_linear=True)
    second = Case(name="SmolLM2 8×128", folder=smol, rows=8, length=128, rank=8, all_linear=True)
    if not options.quick:
        return first, second
    return dataclasses.replace(first, rows=4, length=16), dataclasses.replace(second, rows=4, length=16)


def _all_linear(case: Case, repeat: int, *, hooks_bar: float, ghost_bar: float) -> Iterator[Figure]:
    note = f"all linear layers, r={case.rank}"
    found = _timed(case, tuple(ARMS), repeat)
    our = found["ours"]
    yield median(f"private step ({case.name})", our, "s", note=note)
    yield ratio(f"private step / same kernel ({case.name})", our, found["kernel"], bar=at_most(OVERHEAD), note=note)
    yield ratio(f"private step / stock PEFT ({case.name})", our, found["stock"], bar=at_most(1.0), note=note)
    yield ratio(f"Opacus hooks / ours ({case.name})", found["hooks"], our, bar=at_least(hooks_bar), note=note)
    yield ratio(f"Opacus ghost / ours ({case.name})", found["ghost"], our, bar=at_least(ghost_bar), note=note)


def _timed(case: Case, names: tuple[str, ...], repeat: int) -> dict[str, tuple[float, ...]]:
    steps = {name: ARMS[name](case) for name in names}
    for step in steps.values():
        step()
    return interleaved(steps, repeat=repeat, clock=_gpu_seconds if ON_GPU else cpu_seconds)


def _gpu_seconds(call: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    began = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def noise_share(case: Case, repeat: int) -> Figure:
    """Return the share of a step that drawing and adding the noise takes."""
    network = dp_arms.network_of(case)
    step = PrivateStep(network, clip_norm=1.0, noise_multiplier=1.0, divisor=1.0)
    randomness = KeystreamRandomness(new_round_seed())
    found = interleaved({"noise": lambda: step.finish(randomness), "step": ARMS["ours"](case)}, repeat=max(repeat, 2))
    note = f"{dp_arms.trainable(network)} values; the plan is priced once, not per step"
    return ratio(
        f"noise / private step ({case.name})", found["noise"][1:], found["step"][1:], bar=at_most(0.02), note=note
    )


def exactness(case: Case) -> Iterator[Figure]:
    """Yield the relative error of the per-record gradients, in double and single precision."""
    for dtype, bar in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        yield Figure(
            name=f"error against brute force, {str(dtype).removeprefix('torch.')}",
            value=_error(case, dtype),
            unit="relative",
            bar=at_most(bar),
            note=f"{case.rows} records of {case.length} tokens, all linear layers",
        )


def _error(case: Case, dtype: torch.dtype) -> float:
    network, batch = dp_arms.network_of(case).to(dtype), dp_arms.batch_of(case)
    hidden = network.backbone.lower(batch.ids, batch.lengths).detach()
    step = PrivateStep(network, clip_norm=1.0, noise_multiplier=0.0, divisor=1.0)
    parameters, worst = list(network.trained.values()), 0.0
    # `Network.forward` rounds to float32; exactness in double precision is asked of what is inside it.
    with torch.enable_grad(), network.recorder.recording(case.rows):
        record_losses(network.backbone.upper(hidden, batch.lengths, batch.starts), batch).sum().backward()  # type: ignore[no-untyped-call]
    together = [p.grad_sample for p in parameters]  # type: ignore[attr-defined]
    del step
    with network.recorder.stock_layers():
        for i in range(case.rows):
            row = batch.row(i)
            logits = network.backbone.upper(hidden[i : i + 1], row.lengths, row.starts)
            alone = torch.autograd.grad(record_losses(logits, row)[0], parameters)
            difference = torch.cat([(g[i] - a).flatten() for g, a in zip(together, alone, strict=True)]).norm()
            worst = max(worst, float(difference / torch.cat([a.flatten() for a in alone]).norm()))
    return worst


def memory(case: Case) -> Iterator[Figure]:
    """Yield how much more memory the private step needs than stock PEFT without privacy."""
    values = dp_arms.trainable(dp_arms.network_of(case))
    peaks = {name: _peak_in_own_process(name, case) for name in ("ours", "kernel", "stock")}
    allowed = case.rows * values * 4 + 0.05 * peaks["kernel"]
    note = f"allowed: {case.rows} × {values} × 4 bytes + 5 %"
    for base in ("kernel", "stock"):
        beyond = (peaks["ours"] - peaks[base]) / allowed
        yield Figure(
            name=f"peak memory beyond {base} / allowed ({case.name})",
            value=beyond,
            unit="×",
            bar=at_most(1.0),
            note=note,
        )


def _peak_in_own_process(name: str, case: Case) -> int:
    code = (
        "import sys, torch; from pathlib import Path; from benchmarks import dp, dp_arms\n"
        f"print(dp.peak_bytes({name!r}, dp_arms.Case(name='m', folder=Path({str(case.folder)!r}), rows={case.rows}, "
        f"length={case.length}, rank={case.rank}, all_linear={case.all_linear})))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def peak_bytes(name: str, case: Case) -> int:
    """Return this process' peak memory after three steps of arm `name`: resident, or allocated on a GPU."""
    torch.set_num_threads(1)
    step = ARMS[name](case)
    for _ in range(3):
        step()
    if ON_GPU:
        return int(torch.cuda.max_memory_allocated())
    # Not ru_maxrss: that one starts from the parent's memory.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


if __name__ == "__main__":
    np.random.seed(0)
    main("dp", measure)
