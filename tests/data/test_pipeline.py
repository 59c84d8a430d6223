"""The stream of training batches: reproducible, resumable, divisible among processes."""

import gc
import itertools
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from jaxmamba3d.data.case_files import Centres, centres_of, forget_cases, open_case, write_case
from jaxmamba3d.data.patches import foreground_table
from jaxmamba3d.data.pipeline import training_batches

NAMES = ("one", "two", "three")
PATCH = (10, 12, 8)


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """Three cases whose image tells all: channel 0 numbers case and voxel, channel 1 is the label."""
    folder = tmp_path_factory.mktemp("cases")
    for number, name in enumerate(NAMES, start=1):
        shape = (12 + number, 11, 9)
        label = np.zeros(shape, np.int16)
        label[0] = -1
        if name != "three":
            label[5:8, 4:6, 2] = number
        count = label.size
        image = np.stack([number * 10_000 + np.arange(count).reshape(shape), label], axis=-1)
        write_case(
            folder / name,
            image=image.astype(np.float32),
            label=label,
            centres=Centres(tuple(foreground_table(label, [(1,), (2,)]))),
            properties={},
            identity=[],
        )
    return folder


def stream(cases, **changes):
    options = {"patch_size": PATCH, "batch_size": 4, "seed": 5}
    return training_batches(cases, NAMES, **(options | changes))


def take(iterator, count):
    return list(itertools.islice(iterator, count))


def assert_same(batches, expected):
    assert len(batches) == len(expected)
    for batch, other in zip(batches, expected, strict=True):
        assert batch.keys() == other.keys()
        for key in batch:
            np.testing.assert_array_equal(batch[key], other[key])


def test_batches_are_what_training_reads(cases):
    for batch in take(stream(cases), 20):
        image, label = batch["image"], batch["label"]
        assert image.shape == (4, *PATCH, 2)
        assert image.dtype == np.float32
        assert label.shape == (4, *PATCH)
        assert label.dtype == np.int16
        # The label that the image shows, -1 outside the body and outside the volume.
        outside = image[..., 0] == 0
        assert outside.any(), "every volume is smaller than the patch along Y"
        np.testing.assert_array_equal(np.where(outside, -1, image[..., 1]), label)
        assert (batch["case"] + 1 == image[..., 0].max(axis=(1, 2, 3)) // 10_000).all()


def test_the_last_samples_hold_foreground_where_the_case_has_any(cases):
    first, last = 0, 0
    for batch in take(stream(cases, patch_size=(3, 3, 3), foreground_fraction=0.5), 60):
        number = batch["image"][..., 0].max(axis=(1, 2, 3)) // 10_000
        holds = batch["label"].max(axis=(1, 2, 3)) > 0
        assert (holds[2:] == (number[2:] != 3)).all()
        first, last = first + holds[:2].sum(), last + holds[2:].sum()
    assert first < last / 2


def test_all_cases_are_drawn_with_replacement(cases):
    numbers = [batch["image"][..., 0].max(axis=(1, 2, 3)) // 10_000 for batch in take(stream(cases), 75)]
    counts = np.unique(np.concatenate(numbers), return_counts=True)[1]
    assert len(counts) == 3
    assert abs(counts - 100).max() < 40
    assert any(len(set(batch)) < 4 for batch in numbers)


def test_the_seed_decides_and_threads_do_not(cases):
    expected = take(stream(cases, threads=1), 6)
    assert_same(take(stream(cases, threads=4), 6), expected)
    other = take(stream(cases, seed=6), 6)
    assert not np.array_equal(other[0]["image"], expected[0]["image"])
    assert not np.array_equal(expected[0]["image"], expected[1]["image"])


@pytest.mark.parametrize("at", [0, 1, 5])
def test_resumes_exactly(cases, at):
    expected = take(stream(cases), 10)
    first = stream(cases)
    take(first, at)
    resumed = stream(cases)
    resumed.set_state(first.get_state())
    assert_same(take(resumed, 10 - at), expected[at:])


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_global_batch(cases, count):
    expected = take(stream(cases), 5)
    parts = [take(stream(cases, process_index=i, process_count=count), 5) for i in range(count)]
    assert all(batch["label"].shape[0] == 4 // count for part in parts for batch in part)
    joined = [
        {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}
        for batches in zip(*parts, strict=True)
    ]
    assert_same(joined, expected)


def test_room_for_augmentation_reaches_over_the_border(cases):
    """A volume of at least the patch is padded only where augmentation cuts the margin off again."""
    options = {"patch_size": (11, 11, 9), "batch_size": 30, "foreground_fraction": 0}
    (whole,) = take(stream(cases, **options), 1)
    assert (whole["image"][..., 0] > 0).all()
    (margin,) = take(stream(cases, **options, final_patch_size=(7, 11, 9)), 1)
    padded = (margin["image"][..., 0] == 0).all(axis=(2, 3)).sum(axis=1)
    assert padded.max() == 2


def test_bad_arguments(cases):
    with pytest.raises(FileNotFoundError, match="four: no preprocessed case"):
        training_batches(cases, ["one", "four"], patch_size=PATCH, batch_size=2)
    with pytest.raises(ValueError, match="batch_size must be a multiple of the 3 processes"):
        stream(cases, process_count=3)
    with pytest.raises(ValueError, match="case_names must be at least one case"):
        training_batches(cases, [], patch_size=PATCH, batch_size=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"process_index": 2, "process_count": 2}, "process_index must be below 2, got 2"),
        ({"foreground_fraction": 1.5}, "foreground_fraction must be from 0 to 1, got 1.5"),
        ({"seed": -1}, "seed must be 0 or greater, got -1"),
        ({"patch_size": (0, 8, 8)}, r"patch_size must be greater than 0, got 0"),
        ({"patch_size": (8, 8)}, r"patch_size must be three sizes"),
        (
            {"patch_size": (8, 8, 8), "final_patch_size": (8, 9, 8)},
            r"final_patch_size must be within the patch",
        ),
    ],
)
def test_arguments_that_make_no_sense(cases, options, message):
    with pytest.raises(ValueError, match=message):
        stream(cases, **{"batch_size": 2} | options)


def test_voxels_to_centre_on_are_read_one_structure_at_a_time(cases):
    structures, annotated = centres_of(cases / NAMES[0])
    with np.load(cases / NAMES[0] / "foreground.npz") as tables:
        assert len(structures) == len(tables.files)
        for i, found in enumerate(structures):
            np.testing.assert_array_equal(found, tables[str(i)])
    assert len(annotated) == 0


def test_files_are_opened_once_a_case(cases):
    """Or twice, by two threads in the same moment; then a patch costs its own bytes alone."""
    forget_cases()
    take(stream(cases, batch_size=9), 20)
    for reader in (open_case, centres_of):
        assert reader.cache_info().misses <= 2 * len(NAMES)
    assert isinstance(open_case(cases / NAMES[0]).image, np.memmap)


def test_threads_open_cases_at_the_same_time(cases):
    """Python's parser, which reads the headers of arrays, fails where a garbage collection lets others in, as
    JAX's do."""

    def let_others_in(phase, info):
        time.sleep(0)

    def centre_of(name):
        forget_cases()
        assert open_case(cases / name).label.ndim == 3
        return centres_of(cases / name)[0][0].shape[1]

    thresholds = gc.get_threshold()
    gc.callbacks.append(let_others_in)
    gc.set_threshold(20)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(centre_of, NAMES[:2] * 100)) == [3] * 200
    finally:
        gc.set_threshold(*thresholds)
        gc.callbacks.remove(let_others_in)


def test_jax_takes_batches_without_a_copy_on_cpus(cases):
    """It does where they begin at a multiple of 64 bytes."""
    for batch in take(stream(cases), 20):
        for name in ("image", "label"):
            assert batch[name].ctypes.data % 64 == 0
            assert batch[name].flags.c_contiguous


def test_streams_of_neighbouring_seeds_share_nothing(tmp_path):
    rng = np.random.default_rng(0)
    write_case(
        tmp_path / "a",
        image=rng.normal(size=(20, 20, 20, 1)).astype(np.float32),
        label=np.zeros((20, 20, 20), np.int16),
        centres=Centres(()),
        properties={},
        identity=[],
    )

    def patches(seed):
        (batch,) = itertools.islice(
            training_batches(tmp_path, ["a"], patch_size=(4, 4, 4), batch_size=8, seed=seed), 1
        )
        return {image.tobytes() for image in batch["image"]}

    assert not patches(5) & patches(6)


def test_unforced_patches_too_are_centred_on_what_is_annotated(tmp_path):
    label = np.full((21, 21, 21), 2, np.int16)
    label[10, 10, 10] = 0
    write_case(
        tmp_path / "a",
        image=np.zeros((21, 21, 21, 1), np.float32),
        label=label,
        centres=Centres((), np.array([[10, 10, 10]], np.int32)),
        properties={},
        identity=[],
    )
    batches = training_batches(tmp_path, ["a"], patch_size=(3, 3, 3), batch_size=4, foreground_fraction=0.25)
    assert ((next(batches)["label"] == 0).sum(axis=(1, 2, 3)) == 1).all()


def write_annotated(folder, structures, annotated):
    """One case of zeros whose label numbers its voxels."""
    write_case(
        folder,
        image=np.zeros((21, 21, 21, 1), np.float32),
        label=np.arange(21**3, dtype=np.int16).reshape(21, 21, 21),
        centres=Centres(tuple(np.array([voxel], np.int32) for voxel in structures), annotated),
        properties={},
        identity=[],
    )


def middles(folder, **options):
    """The middle voxels of a batch's patches."""
    batch = next(training_batches(folder.parent, [folder.name], patch_size=(3, 3, 3), **options))
    return [np.unravel_index(number, (21, 21, 21)) for number in batch["label"][:, 1, 1, 1]]


def test_forced_patches_are_centred_on_structures_where_only_some_voxels_are_annotated(tmp_path):
    write_annotated(tmp_path / "a", [(4, 5, 6)], np.array([[10, 10, 10]], np.int32))
    found = middles(tmp_path / "a", batch_size=4, foreground_fraction=0.5)
    assert found == [(10, 10, 10)] * 2 + [(4, 5, 6)] * 2


def test_the_centres_of_a_case_that_was_written_again_are_the_new_ones(tmp_path):
    options = {"batch_size": 1, "foreground_fraction": 1}
    write_annotated(tmp_path / "a", [(4, 5, 6)], None)
    assert middles(tmp_path / "a", **options) == [(4, 5, 6)]
    for structures in ([(7, 8, 9)], []):
        write_annotated(tmp_path / "a", structures, np.array([[10, 10, 10]], np.int32))
        forget_cases()
        assert middles(tmp_path / "a", **options) == [*structures, (10, 10, 10)][:1]


def test_eleven_structures_and_more_stay_in_their_order(tmp_path):
    voxels = [(n, n, n) for n in range(12)]
    write_annotated(tmp_path / "a", voxels, None)
    structures, _ = centres_of(tmp_path / "a")
    assert [tuple(table[0]) for table in structures] == voxels
