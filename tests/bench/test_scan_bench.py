"""The bench of the scan: its shapes, its floors, and what it writes."""

import json

import pytest

from jaxmamba3d.bench import scan
from jaxmamba3d.bench.floors import ChipRates, chip_rates, floor_seconds
from jaxmamba3d.bench.scan import bench_scan
from jaxmamba3d.bench.shapes import ScanShape, paper_shapes


def test_the_paper_s_longest_scans_come_first():
    shapes = paper_shapes()
    assert shapes[0].size == (2, 128**3, 64, 32)
    assert shapes[0].where == "brain_tumour stage 0"
    assert len({shape.size for shape in shapes}) == len(shapes)
    deepest = {shape.size: shape.where for shape in shapes if shape.length == 4**3}
    assert deepest[2, 64, 640, 64] == "brain_tumour stage 5 of multisegmamba"
    assert deepest[2, 64, 640, 256] == "brain_tumour stage 5 of segmamba, bisegmamba, segmambaskip"
    assert all(shape.states <= 64 for shape in paper_shapes(nets=["multisegmamba"]))
    with pytest.raises(ValueError, match="datasets must be one of brain_tumour, acdc, synapse, got 'liver'"):
        paper_shapes(["liver"])


def test_the_floor_is_the_slower_of_exponentials_and_bytes():
    shape = ScanShape(1, 1000, 10, 4, "")
    fast_memory, slow_memory = ChipRates(1, 1e6 / 16, 1e12), ChipRates(1, 1e12 / 16, 1e6)
    assert floor_seconds(shape, fast_memory, bytes_per_number=4, backward=False) == pytest.approx(0.08)
    assert floor_seconds(shape, fast_memory, bytes_per_number=4, backward=True) == pytest.approx(0.16)
    # u, delta, z, y of 10 channels and B, C of 4 states.
    assert floor_seconds(shape, slow_memory, bytes_per_number=2, backward=False) == pytest.approx(0.096)
    assert chip_rates("NVIDIA H100 80GB HBM3").bytes == 3.35e12
    assert chip_rates("cpu") is None
    assert chip_rates("NVIDIA L4").processors == 58
    assert chip_rates("NVIDIA L40S") is None
    assert chip_rates("NVIDIA GeForce RTX 3090 Ti") is None
    assert chip_rates("NVIDIA H100 80GB HBM3 MIG 1g.10gb") is None
    assert chip_rates("NVIDIA GH200 480GB") is None


def test_a_small_bench(tmp_path):
    shapes = [
        ScanShape(1, 70, 4, 3, "somewhere"),
        ScanShape(1, 4, 4, 300, "wide"),
        ScanShape(1, 999, 4, 3, "long"),
    ]
    names = ["xla_sequential", "pallas_triton"]
    options = {"blocks": ["chunk=16"], "repeats": 2, "longest": 100}
    rows = bench_scan(shapes, names, ["float32"], tmp_path / "out", **options)
    ours = [row for row in rows if row.implementation in (*names, "pallas_triton chunk=16")]
    assert len(ours) == 3 * 2 * 2 * 2
    assert {row.length for row in ours} == {70, 4}
    for row in ours:
        if row.implementation.startswith("pallas_triton") and row.states == 300:
            assert row.milliseconds is None
            assert row.note == "it holds at most 256 states, and A has 300"
        else:
            assert row.tokens_per_second == pytest.approx(row.length / row.milliseconds * 1e3)
    found = json.loads((tmp_path / "out" / "scan.json").read_text())
    assert len(found["rows"]) == len(rows)
    table = (tmp_path / "out" / "scan.md").read_text()
    assert "| xla_sequential | 1 | 70 | 4 | 3 | float32 | forward | forward + gradient |" in table
    assert "| pallas_triton chunk=16 | 1 | 70 |" in table
    assert "- B 1, L 70, D 4, N 3: somewhere" in table
    assert (tmp_path / "out" / "scan.png").stat().st_size > 1000


def test_kernels_with_other_blocks():
    names = ["xla_sequential", "pallas_mosaic_gpu", "pallas_triton"]
    variants = scan._variants(names, ["stride=3", "chunk=8,stride=1"])
    assert list(variants) == [*names, "pallas_triton stride=3", "pallas_triton chunk=8,stride=1"]
    del variants["xla_sequential"], variants["pallas_mosaic_gpu"]
    shape = ScanShape(1, 70, 16, 3, "somewhere")
    chosen, impossible, smaller = scan._compile_case(shape, variants, "float32", False, False).values()
    assert impossible == "stride must be a power of two for the Triton kernels, got 3"
    temporaries = [program.memory_analysis().temp_size_in_bytes for program in (chosen, smaller)]
    assert temporaries[0] != temporaries[1]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("stride", "blocks must be sizes such as stride=1 or chunk=64,stride=1, got 'stride'"),
        ("", "blocks must be sizes such as stride=1 or chunk=64,stride=1, got ''"),
        ("strid=1", "the name of a block's size must be one of .*, got 'strid'"),
        ("stride=0", "stride must be greater than 0, got 0"),
        ("stride=1,stride=2", "blocks must be sizes such as .*, got 'stride=1,stride=2'"),
    ],
)
def test_blocks_that_there_are_not(tmp_path, wanted, message):
    with pytest.raises(ValueError, match=message):
        bench_scan(
            [ScanShape(1, 8, 4, 3, "")], ["pallas_triton"], ["float32"], tmp_path, blocks=[wanted], repeats=1
        )
    assert not (tmp_path / "scan.json").exists()


def test_blocks_without_a_kernel():
    with pytest.raises(ValueError, match="implementations must be some with blocks of stride=1, got xla_seq"):
        scan._variants(["xla_sequential"], ["stride=1"])


def test_no_scan_so_short(tmp_path):
    with pytest.raises(
        ValueError, match="longest must be at least the 70 tokens of the shortest scan, got 9"
    ):
        bench_scan([ScanShape(1, 70, 4, 3, "")], ["xla_sequential"], ["float32"], tmp_path, longest=9)


def test_what_is_measured_is_kept(tmp_path, monkeypatch):
    def interrupted_at_the_second(shape, dtype):
        if shape.where == "second":
            raise KeyboardInterrupt
        return make_inputs(shape, dtype)

    make_inputs = scan._inputs
    monkeypatch.setattr(scan, "_inputs", interrupted_at_the_second)
    shapes = [ScanShape(1, 8, 4, 3, "first"), ScanShape(1, 7, 4, 3, "second")]
    with pytest.raises(KeyboardInterrupt):
        bench_scan(shapes, ["xla_sequential"], ["float32"], tmp_path, repeats=1)
    rows = json.loads((tmp_path / "scan.json").read_text())["rows"]
    assert {row["where"] for row in rows} == {"first"}
