"""`jaxmamba3d bench scan`: the implementations of the scan on the shapes of the paper's networks."""

import dataclasses
import functools
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tqdm import tqdm

from jaxmamba3d.bench.floors import chip_rates, floor_seconds
from jaxmamba3d.bench.peers import DOES_NOT_FIT, peers
from jaxmamba3d.bench.shapes import ScanShape
from jaxmamba3d.bench.timing import Timing, time_calls
from jaxmamba3d.checks import check_count, check_that
from jaxmamba3d.files import replacing, write_json, write_text
from jaxmamba3d.ops.selective_scan import selective_scan, unsupported_reason
from jaxmamba3d.ops.selective_scan.blocks import block_sizes, override_blocks
from jaxmamba3d.wording import markdown_table


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One row.

    Args:
        implementation: of the scan, and block sizes where other than the chosen ones were set.
        batch, length, channels, states: B, L, D, N.
        where: the networks' stages that run this scan.
        dtype: of the sequences.
        reverse: from the last token to the first.
        backward: forward and backward, else forward alone.
        milliseconds, spread: median and distance of the quartiles; None: not measured, see `note`.
        tokens_per_second: B L over the median.
        share_of_floor: the chip's least time over the median; None where the chip is not in the table.
        temporaries_mb: the compiled program's memory without inputs and outputs; None for other libraries.
        note: why a row has no time.
    """

    implementation: str
    batch: int
    length: int
    channels: int
    states: int
    where: str
    dtype: str
    reverse: bool
    backward: bool
    milliseconds: float | None = None
    spread: float | None = None
    tokens_per_second: float | None = None
    share_of_floor: float | None = None
    temporaries_mb: float | None = None
    note: str = ""


def bench_scan(
    shapes: Sequence[ScanShape],
    implementations: Sequence[str],
    dtypes: Sequence[str],
    output: Path,
    *,
    blocks: Sequence[str] = (),
    repeats: int = 5,
    longest: int | None = None,
) -> list[Measurement]:
    """Measures, and writes scan.md, scan.json and scan.png after each scan.

    Args:
        shapes: the scans.
        implementations: names, see `selective_scan`.
        dtypes: of the sequences: float32, bfloat16.
        output: folder; made if missing.
        blocks: sizes that each kernel is also measured with, such as stride=1 or chunk=64,stride=1; see
            `override_blocks`.
        repeats: calls of which the median is taken.
        longest: scans of more tokens are left out.

    Returns:
        a row for each implementation and peer, scan, dtype, direction and pass.

    Raises:
        ValueError: `longest` leaves no scan, repeats is below 1, or `blocks` are malformed or of none of the
            implementations.
    """
    chosen = [shape for shape in shapes if longest is None or shape.length <= longest]
    shortest = min((shape.length for shape in shapes), default=0)
    check_count("repeats", repeats)
    check_that(bool(chosen), "longest", f"at least the {shortest} tokens of the shortest scan", longest)
    cases = list(itertools.product(dtypes, (False, True), (False, True)))
    variants = _variants(implementations, blocks)
    total = len(chosen) * len(cases) * len([*variants, *peers()])
    output.mkdir(parents=True, exist_ok=True)
    rows: list[Measurement] = []
    with tqdm(total=total, desc="scan", unit="row") as bar, ThreadPoolExecutor() as pool:
        for shape in chosen:
            # Compiling takes much longer than measuring: a shape's cases compile side by side.
            compile_case = functools.partial(_compile_case, shape, variants)
            compiled = list(pool.map(compile_case, *zip(*cases, strict=True)))
            for case, programs in zip(cases, compiled, strict=True):
                for row in _measure_case(shape, *case, programs, repeats):
                    rows.append(row)
                    bar.update()
            _write(rows, output)
    return rows


class _Variant(NamedTuple):
    implementation: str
    blocks: dict[str, int]


def _variants(implementations: Sequence[str], blocks: Sequence[str]) -> dict[str, _Variant]:
    """By the name that a row gives it: each implementation, and each kernel with those blocks that it has."""
    found = {}
    sizes = {wanted: _sizes(wanted) for wanted in blocks}
    for name in implementations:
        found[name] = _Variant(name, {})
        for wanted, of_blocks in sizes.items():
            if of_blocks.keys() <= block_sizes(name):
                found[f"{name} {wanted}"] = _Variant(name, of_blocks)
    for wanted in blocks:
        measured = any(name.endswith(f" {wanted}") for name in found)
        check_that(measured, "implementations", f"some with blocks of {wanted}", ", ".join(implementations))
    return found


def _sizes(wanted: str) -> dict[str, int]:
    pairs = re.findall(r"(\w+)=(\d+)", wanted)
    sizes = {name: int(size) for name, size in pairs}
    well_formed = pairs and len(sizes) == len(pairs) and wanted == ",".join(map("=".join, pairs))
    check_that(bool(well_formed), "blocks", "sizes such as stride=1 or chunk=64,stride=1", repr(wanted))
    with override_blocks(**sizes):
        return sizes


def _compile_case(
    shape: ScanShape, variants: Mapping[str, _Variant], dtype: str, reverse: bool, backward: bool
) -> dict[str, jax.stages.Compiled | str]:
    """By the name of the variant: the program, or why there is none."""

    def compiled(variant: _Variant) -> jax.stages.Compiled | str:
        inputs = jax.eval_shape(functools.partial(_inputs, shape, dtype))
        if reason := unsupported_reason(variant.implementation, **inputs):
            return reason
        try:
            with override_blocks(**variant.blocks):
                return jax.jit(_program(variant.implementation, reverse, backward)).lower(inputs).compile()
        except jax.errors.JaxRuntimeError as error:
            return _why_it_does_not_fit(error)
        except ValueError as error:
            if variant.blocks:
                return str(error)  # not every size suits every scan
            raise

    return {name: compiled(variant) for name, variant in variants.items()}


def _why_it_does_not_fit(error: jax.errors.JaxRuntimeError) -> str:
    if "RESOURCE_EXHAUSTED" not in str(error):
        raise error
    return DOES_NOT_FIT


def _measure_case(
    shape: ScanShape,
    dtype: str,
    reverse: bool,
    backward: bool,
    programs: dict[str, jax.stages.Compiled | str],
    repeats: int,
) -> Iterator[Measurement]:
    def row(name: str, timing: Timing | None, **fields) -> Measurement:
        measured = _numbers(shape, dtype, backward, timing) if timing else {}
        return Measurement(name, *shape.size, shape.where, dtype, reverse, backward, **(measured | fields))

    inputs = _inputs(shape, dtype)
    for name, program in programs.items():
        if isinstance(program, str):
            yield row(name, None, note=program)
            continue
        try:
            jax.block_until_ready(program(inputs))
        except jax.errors.JaxRuntimeError as error:
            yield row(name, None, note=_why_it_does_not_fit(error))
            continue
        timing = time_calls(functools.partial(program, inputs), repeats=repeats)
        memory = program.memory_analysis()
        yield row(name, timing, temporaries_mb=memory.temp_size_in_bytes / 2**20)
    for name, measure in peers().items():
        found = measure(shape, dtype, reverse, backward, repeats)
        yield row(name, None, note=found) if isinstance(found, str) else row(name, found)


def _program(name: str, reverse: bool, backward: bool):
    def scan(inputs):
        return selective_scan(**inputs, delta_softplus=True, reverse=reverse, implementation=name)

    if not backward:
        return scan
    return jax.value_and_grad(lambda inputs: jnp.sum(scan(inputs).astype(jnp.float32)))


def _inputs(shape: ScanShape, dtype: str) -> dict[str, jax.Array]:
    """As a freshly initialised Mamba layer has them."""
    batch, length, channels, states, _ = shape
    keys = iter(jax.random.split(jax.random.key(0), 5))

    def sequence(width):
        return jax.random.normal(next(keys), (batch, length, width), dtype)

    return {
        "u": sequence(channels),
        "delta": sequence(channels),
        "z": sequence(channels),
        "B": sequence(states),
        "C": sequence(states),
        "A": -jnp.broadcast_to(jnp.arange(1.0, states + 1), (channels, states)),
        "D": jnp.ones(channels),
        "delta_bias": jnp.full(channels, -4.0),
    }


def _numbers(shape: ScanShape, dtype: str, backward: bool, timing: Timing) -> dict[str, float | None]:
    rates = chip_rates(jax.devices()[0].device_kind)
    size = jnp.dtype(dtype).itemsize
    floor = rates and floor_seconds(shape, rates, bytes_per_number=size, backward=backward)
    return {
        "milliseconds": timing.median * 1e3,
        "spread": timing.spread * 1e3,
        "tokens_per_second": shape.batch * shape.length / timing.median,
        "share_of_floor": floor and floor / timing.median,
    }


def _write(rows: Sequence[Measurement], output: Path) -> None:
    write_json(output / "scan.json", {"device": _device(), "rows": [dataclasses.asdict(row) for row in rows]})
    write_text(output / "scan.md", _markdown(rows))
    _draw(rows, output / "scan.png")


def _device() -> str:
    return f"{jax.devices()[0].device_kind}, jax {jax.__version__}"


def _markdown(rows: Sequence[Measurement]) -> str:
    columns = ("implementation", "B", "L", "D", "N", "dtype", "direction", "pass", "ms", "± ms", "Mtokens/s")
    columns += ("of the floor", "temporaries MB")

    def number(value: float | None, digits: int, note: str = "-") -> str:
        return note if value is None else f"{value:.{digits}f}"

    def cells_of(row):
        million = None if row.tokens_per_second is None else row.tokens_per_second / 1e6
        cells = [row.implementation, row.batch, row.length, row.channels, row.states, row.dtype]
        cells += ["backward" if row.reverse else "forward"]
        cells += ["forward + gradient" if row.backward else "forward"]
        cells += [number(row.milliseconds, 2, row.note or "-"), number(row.spread, 2)]
        cells += ["-" if million is None else f"{million:.3g}"]
        cells += [number(row.share_of_floor, 2), number(row.temporaries_mb, 0)]
        return cells

    stages = dict.fromkeys(
        (f"B {r.batch}, L {r.length}, D {r.channels}, N {r.states}", r.where) for r in rows
    )
    places = "".join(f"- {size}: {where}\n" for size, where in stages)
    table = markdown_table(columns, map(cells_of, rows))
    return f"# Selective scan on {_device()}\n\n{table}\nWhere the networks run these scans:\n\n{places}"


def _draw(rows: Sequence[Measurement], path: Path) -> None:
    """Time against length, a panel for each dtype and pass, forward in time."""
    measured = [row for row in rows if row.milliseconds is not None and not row.reverse]
    panels = sorted({(row.dtype, row.backward) for row in measured})
    figure = Figure(figsize=(5.2 * max(1, len(panels)), 4.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    names = list(dict.fromkeys(row.implementation for row in measured))
    for column, (dtype, backward) in enumerate(panels):
        panel = figure.add_subplot(1, len(panels), column + 1)
        for colour, name in enumerate(names):
            mine = [r for r in measured if (r.implementation, r.dtype, r.backward) == (name, dtype, backward)]
            points = sorted((row.length, row.milliseconds) for row in mine)
            if points:
                panel.plot(*zip(*points, strict=True), "o-", ms=3, lw=1, color=f"C{colour}", label=name)
        panel.set(xscale="log", yscale="log", xlabel="tokens of a sequence", ylabel="ms")
        panel.set_title(f"{dtype}, {'forward + gradient' if backward else 'forward'}", fontsize=10)
        panel.grid(alpha=0.3, which="both")
        panel.legend(frameon=False, fontsize=8)
    figure.suptitle(f"Selective scan on {_device()}", fontsize=11)
    with replacing(path) as unfinished:
        figure.savefig(unfinished)
