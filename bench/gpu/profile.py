"""The kernels that a piece of work launches, counted and timed by torch's profiler."""

from collections import defaultdict
from typing import Any

from torch.autograd import DeviceType  # type: ignore[attr-defined]  # torch does not list it
from torch.profiler import ProfilerActivity, profile

from bench.gpu.device import DEVICE, Work, sync
from bench.gpu.results import PROFILE_FILE, out_folder

_SMALL_MS = 0.006
_ROW_KERNELS, _FILE_KERNELS = 8, 30


def kernel_table(work: Work, title: str) -> dict[str, Any]:
    """Returns how many kernels one run launches and which of them take the most time.

    More of them are added to profile.txt, below `title`.
    """
    activities = [ProfilerActivity.CPU]
    if DEVICE.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        work()
        sync()
    times_ms = defaultdict(list)
    for event in profiler.events() or ():
        if event.device_type == DeviceType.CUDA:
            times_ms[event.name].append(event.time_range.elapsed_us() / 1e3)
    kernels = sorted(
        ((name, len(times), sum(times)) for name, times in times_ms.items()),
        key=lambda kernel: -kernel[2],
    )
    launches = sum(count for _, count, _ in kernels)
    total_ms = sum(ms for _, _, ms in kernels)
    with (out_folder() / PROFILE_FILE).open("a") as file:
        file.write(
            f"\n== {title}: {launches} kernels and copies, {total_ms:.2f} ms of device time\n"
        )
        for name, count, ms in kernels[:_FILE_KERNELS]:
            file.write(f"{ms:9.3f} ms {count:6d} x {1e3 * ms / count:8.1f} us  {name[:140]}\n")
    return {
        "launches": launches,
        "device_ms": total_ms,
        "ms_in_kernels_under_6us": sum(ms for _, n, ms in kernels if ms / n < _SMALL_MS),
        "top": [[name[:60], count, round(ms, 3)] for name, count, ms in kernels[:_ROW_KERNELS]],
    }
