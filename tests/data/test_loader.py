"""Batches, gathered on the device or streamed by processes."""

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rsnn_fmnist.data.loader import EVALUATION_BATCH, Loader, batch_indices
from rsnn_fmnist.data.pictures import Pictures
from rsnn_fmnist.data.splits import epoch_order

CPU = torch.device("cpu")


def test_batch_indices() -> None:
    order = torch.tensor([4, 2, 0, 1, 3])

    def cut(size: int, drop_last: bool) -> list[list[int]]:
        return [batch.tolist() for batch in batch_indices(order, size, drop_last=drop_last)]

    assert cut(2, drop_last=False) == [[4, 2], [0, 1], [3]]
    assert cut(2, drop_last=True) == [[4, 2], [0, 1]]
    assert cut(5, drop_last=True) == cut(9, drop_last=False) == [[4, 2, 0, 1, 3]]
    assert cut(6, drop_last=True) == []


def random_set(count: int) -> Pictures:
    rng = np.random.default_rng(1)
    columns = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
    return Pictures(torch.from_numpy(columns), torch.from_numpy(rng.integers(0, 10, count)))


def test_batch_is_a_view_of_columns_laid_out_in_time() -> None:
    pictures = random_set(9)
    loader = Loader(pictures, CPU, normalize=False)
    assert len(loader) == 9
    indices = [torch.tensor([8, 0, 3]), torch.tensor([5])]
    batches = list(loader.batches(indices))
    assert [tuple(x.shape) for x, _ in batches] == [(3, 28, 28), (1, 28, 28)]
    for (x, labels), index in zip(batches, indices, strict=True):
        assert x.dtype == torch.float32
        x_seq = x.permute(2, 0, 1)  # [T, N, H]
        assert x_seq.is_contiguous()
        for t in (0, 13, 27):
            torch.testing.assert_close(x_seq[t], pictures.columns[index, t] / 255)
        assert torch.equal(labels, pictures.labels[index])


@pytest.mark.usefixtures("float64")
def test_values_in_float64() -> None:
    columns = torch.zeros(1, 28, 28, dtype=torch.uint8)
    columns[0, 20, 3], columns[0, 27, 0] = 255, 51  # column 20 row 3, column 27 row 0
    pictures = Pictures(columns, torch.tensor([4]))
    expected = torch.zeros(28, 28)  # [H, W]
    expected[3, 20], expected[0, 27] = 1.0, 0.2
    for normalize in (False, True):
        ((x, _),) = Loader(pictures, CPU, normalize=normalize).batches([torch.tensor([0])])
        assert x.dtype == torch.float64
        wanted = (expected - 0.2860) / 0.3530 if normalize else expected
        torch.testing.assert_close(x[0], wanted, rtol=0, atol=1e-14)


def test_changing_a_batch_changes_no_picture() -> None:
    pictures = random_set(4)
    before = pictures.columns.clone()
    loader = Loader(pictures, CPU)
    index = [torch.tensor([1, 2])]
    ((x, _),) = loader.batches(index)
    again = x.clone()
    x.zero_()
    assert torch.equal(pictures.columns, before)
    assert torch.equal(next(loader.batches(index))[0], again)


def test_in_order_is_the_whole_set_in_its_order() -> None:
    pictures = random_set(EVALUATION_BATCH + 5)
    loader = Loader(pictures, CPU)
    batches = list(loader.in_order())
    assert [len(labels) for _, labels in batches] == [EVALUATION_BATCH, 5]
    assert torch.equal(torch.cat([labels for _, labels in batches]), pictures.labels)
    x = torch.cat([x for x, _ in batches])
    assert torch.equal(x, loader.take(torch.arange(len(pictures)))[0])


def test_a_resident_selection_is_the_batch_of_indices() -> None:
    loader = Loader(random_set(9), CPU)
    indices = [torch.tensor([8, 0, 3]), torch.tensor([5])]
    for selection, index in zip(loader.selections(indices), indices, strict=True):
        assert torch.equal(selection, index)
    assert len(loader.pictures) == 9


@pytest.mark.slow
def test_a_streamed_selection_refers_to_a_buffer_of_one_batch() -> None:
    """The buffer stays in place, since a CUDA graph reads from it."""
    pictures = random_set(50)
    loader = Loader(pictures, CPU, workers=1)
    assert len(loader) == 50
    buffers = []
    for _ in range(2):
        indices = list(torch.arange(50).flip(0).split(20))
        for index, selection in zip(indices, loader.selections(indices), strict=True):
            assert selection.tolist() == list(range(len(index)))
            assert torch.equal(loader.pictures.labels[selection], pictures.labels[index])
            buffers.append(loader.pictures.columns)
    assert len(loader.pictures) == EVALUATION_BATCH
    assert all(buffer is buffers[0] for buffer in buffers)
    loader.close()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_give_the_same_batches(workers: int) -> None:
    """In three passes; the second is abandoned before its end."""
    pictures = random_set(50)
    resident = Loader(pictures, CPU)
    state = torch.get_rng_state()
    streaming = Loader(pictures, CPU, workers=workers)
    for epoch, taken in enumerate((7, 3, 8)):
        indices = batch_indices(epoch_order(50, 0, epoch), 7, drop_last=False)
        expected = list(resident.batches(indices))[:taken]
        passed = streaming.batches(indices)
        found = [next(passed) for _ in range(taken)] if taken < 8 else list(passed)
        assert len(found) == len(expected)
        for (x, labels), (expected_x, expected_labels) in zip(found, expected, strict=True):
            assert torch.equal(x, expected_x)
            assert torch.equal(labels, expected_labels)
            assert x.permute(2, 0, 1).is_contiguous()
    assert torch.equal(torch.get_rng_state(), state)
    assert len(multiprocessing.active_children()) == workers
    streaming.close()
    assert multiprocessing.active_children() == []


@pytest.mark.slow
@pytest.mark.parametrize("when", [1, 5])
def test_a_worker_that_is_killed_costs_no_batch(when: int, capsys: Any) -> None:
    """In a first pass and, between two passes, before the third."""
    pictures = random_set(200)
    resident, streaming = Loader(pictures, CPU), Loader(pictures, CPU, workers=2)
    handler = signal.getsignal(signal.SIGCHLD)
    for epoch in range(3):
        indices = batch_indices(epoch_order(200, 0, epoch), 20, drop_last=False)
        pairs = zip(streaming.batches(indices), resident.batches(indices), strict=True)
        for count, ((x, labels), (expected_x, expected_labels)) in enumerate(pairs):
            assert torch.equal(x, expected_x)
            assert torch.equal(labels, expected_labels)
            if epoch == 0 and count == when:
                multiprocessing.active_children()[0].kill()
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "exited unexpectedly; without -j from here on" in message
    assert multiprocessing.active_children() == []
    assert signal.getsignal(signal.SIGCHLD) is handler


@pytest.mark.slow
def test_a_long_path_for_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sockets, which cannot have such a path, are not used."""
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setitem(multiprocessing.process.current_process()._config, "tempdir", None)
    loader = Loader(random_set(4), CPU, workers=2)
    assert len(list(loader.batches([torch.arange(4)] * 7))) == 7
    loader.close()


@pytest.mark.slow
def test_batches_that_are_larger_than_the_first_ones(capsys: Any) -> None:
    """A run that resumes at the end of an epoch has none at first."""
    pictures = random_set(1500)
    loader = Loader(pictures, CPU, workers=1)
    assert list(loader.batches([])) == []
    ((_, labels),) = loader.batches([torch.arange(1500)])
    assert torch.equal(labels, pictures.labels)
    assert capsys.readouterr().err == ""
    loader.close()


def test_processes_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def fail(*_: Any) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(multiprocessing.context.SpawnProcess, "_Popen", staticmethod(fail))
    pictures = random_set(30)
    loader = Loader(pictures, CPU, workers=2)
    ((_, labels),) = loader.batches([torch.arange(30)])
    assert torch.equal(labels, pictures.labels)
    assert "Too many open files; without -j from here on" in capsys.readouterr().err
    loader.close()


@pytest.mark.slow
def test_more_workers_than_cores_do_not_warn() -> None:
    """Any warning is an error in the tests."""
    loader = Loader(random_set(4), CPU, workers=len(os.sched_getaffinity(0)) + 1)
    assert len(list(loader.batches([torch.arange(4)]))) == 1
    loader.close()


@pytest.mark.slow
def test_a_program_ends_without_closing_its_loader() -> None:
    """Also where the loader is in a cycle of references that is never collected."""
    program = """
import gc, torch
from rsnn_fmnist.data.loader import Loader
from rsnn_fmnist.data.pictures import Pictures
gc.disable()
pictures = Pictures(torch.zeros(8, 28, 28, dtype=torch.uint8), torch.zeros(8, dtype=torch.int64))
loader = Loader(pictures, torch.device("cpu"), workers=2)
loader.itself = loader
print(sum(len(y) for _, y in loader.batches([torch.arange(4)] * 3)))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], timeout=60, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("12\n", "")


@pytest.mark.cuda
@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_batches_on_the_gpu(workers: int) -> None:
    """The indices of the training loop are on the device; workers need them on the host."""
    pictures = random_set(20)
    order = epoch_order(20, 0, 0)
    expected = list(Loader(pictures, CPU).batches(batch_indices(order, 7, drop_last=False)))
    loader = Loader(pictures, torch.device("cuda"), workers=workers)
    found = list(loader.batches(batch_indices(order.cuda(), 7, drop_last=False)))
    assert len(found) == 3
    for (x, labels), (expected_x, expected_labels) in zip(found, expected, strict=True):
        assert x.is_cuda
        torch.testing.assert_close(x.cpu(), expected_x, rtol=0, atol=1e-6)
        assert torch.equal(labels.cpu(), expected_labels)
