"""Device lists and the mesh."""

import pytest
import torch

from tpfx.errors import DeviceError, TpfxError
from tpfx.runtime.mesh import Mesh, parse_devices

CPU = torch.device("cpu")


def with_gpus(monkeypatch: pytest.MonkeyPatch, count: int, current: int = 0) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current)


@pytest.mark.parametrize(
    ("devices", "gpus", "words"),
    [
        (None, 0, "there is none"),
        ([], 2, "empty list"),
        (["gpu:0"], 2, r"devices\[0\] = 'gpu:0' is not a device"),
        (["cpu", "nonsense"], 0, r"devices\[1\] = 'nonsense'"),
        (["meta", "meta"], 0, "on a meta device"),
        ([torch.device("meta")], 0, "on a meta device"),
        (["mps"], 0, "on a mps device"),
        (["cuda:0"], 0, "no CUDA GPU"),
        (["cuda"], 0, "no CUDA GPU"),
        ([0, 1], 0, "no CUDA GPU"),
        (["cuda:0", "cuda:2"], 2, r"devices\[1\] = 'cuda:2': 2 CUDA GPU.* 0\.\.1"),
        ([0, 7], 2, r"devices\[1\] = 7"),
        ([-1], 2, "indices"),
        (["cpu", "cuda:0"], 1, r"devices\[0\] is cpu and devices\[1\] is cuda:0"),
        ("auto", 0, "there is none"),
        ("cuda:0", 1, "'cuda:0' is one device"),
        (torch.device("cpu"), 0, "'cpu' is one device"),
        ({"cpu"}, 0, "must be a list"),
        (1.5, 0, "got float"),
        ([1.5], 1, r"devices\[0\] = 1.5 is a float"),
        ([True], 2, "is a bool"),
        (True, 2, "is a bool"),
        (0, 2, "at least 1"),
        (-2, 0, "at least 1"),
        (3, 2, "only 2 CUDA"),
    ],
)
def test_bad_devices(monkeypatch: pytest.MonkeyPatch, devices: object, gpus: int, words: str) -> None:
    with_gpus(monkeypatch, gpus)
    with pytest.raises(DeviceError, match=words):
        parse_devices(devices)  # type: ignore[arg-type]


def test_errors_are_value_errors_too() -> None:
    with pytest.raises(ValueError, match="empty"):
        parse_devices([])
    assert issubclass(DeviceError, TpfxError)


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        (["cpu"], ["cpu"]),
        (("cpu", torch.device("cpu"), "cpu:0"), ["cpu"] * 3),
        (3, ["cpu"] * 3),
    ],
)
def test_cpu_devices(monkeypatch: pytest.MonkeyPatch, devices: object, expected: list[str]) -> None:
    with_gpus(monkeypatch, 0)
    assert parse_devices(devices) == tuple(map(torch.device, expected))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        (None, ["cuda:0", "cuda:1", "cuda:2"]),
        ("auto", ["cuda:0", "cuda:1", "cuda:2"]),
        (2, ["cuda:0", "cuda:1"]),
        (["cuda", "cuda:0"], ["cuda:1", "cuda:0"]),
        ([torch.device("cuda"), 2], ["cuda:1", "cuda:2"]),
        (["cuda:0", "cuda:0"], ["cuda:0", "cuda:0"]),
        (["cpu", "cpu"], ["cpu", "cpu"]),
    ],
)
def test_cuda_devices(monkeypatch: pytest.MonkeyPatch, devices: object, expected: list[str]) -> None:
    with_gpus(monkeypatch, 3, current=1)
    assert parse_devices(devices) == tuple(map(torch.device, expected))  # type: ignore[arg-type]


def test_mesh() -> None:
    mesh = Mesh((CPU, CPU, CPU))
    assert mesh.size == 3
    assert mesh.owned == (0, 1, 2)
    other = Mesh((CPU, CPU, CPU))
    names = {m.group_name(rank) for m in (mesh, other) for rank in m.owned}
    assert len(names) == 6


def test_mesh_of_one_rank_of_a_world() -> None:
    mesh = Mesh((CPU, CPU), owned=(1,), names=("world", "world"))
    assert mesh.owned == (1,)
    assert mesh.group_name(0) == "world"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"devices": ()}, "needs at least one device, got none"),
        ({"devices": (CPU,), "owned": (1,)}, r"ranks in 0..0, got 1 names and ranks \(1,\)"),
        ({"devices": (CPU,), "names": ("a", "b")}, "needs 1 group names .* got 2 names"),
    ],
)
def test_bad_mesh(arguments: dict[str, tuple[object, ...]], message: str) -> None:
    with pytest.raises(DeviceError, match=message):
        Mesh(**arguments)  # type: ignore[arg-type]
