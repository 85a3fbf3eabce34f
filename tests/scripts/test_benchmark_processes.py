"""scripts/benchmark_processes.py runs, and compares several processes with one."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "scripts" / "benchmark_processes.py"


@pytest.mark.slow
def test_the_benchmark_of_processes_runs() -> None:
    words = "--processes 1 2 --hidden 8 -b 64 --rounds 1 --seconds 0.1 --model plain".split()
    done = subprocess.run([sys.executable, str(BENCHMARK), *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    one, two = (line.split() for line in done.stdout.splitlines()[-2:])
    assert one[:4] == ["plain", "8", "64", "1"]
    assert one[6] == "1.00"
    assert two[:4] == ["plain", "8", "64", "2"]
    images_per_second, sum_ms, sum_kib = (float(two[i].replace(",", "")) for i in (4, 8, 9))
    assert images_per_second > 0
    assert sum_ms > 0
    assert sum_kib == pytest.approx((39 * 8 + 10 + 7) * 4 / 1024, abs=0.05)  # README's P + 7


def test_the_benchmark_of_processes_compares_with_one() -> None:
    benchmark = runpy.run_path(str(BENCHMARK))
    case, table = benchmark["Case"], benchmark["table"]
    two = {"images_per_second": 3000.0, "sum_seconds": 0.002, "sum_bytes": 2048.0}
    answers = {
        case(1, 8, 64, "plain", 1.0): [{"images_per_second": r} for r in (1000.0, 2000.0, 4000.0)],
        case(2, 8, 64, "plain", 1.0): [two],
    }
    one_line, two_line = (line.split() for line in table(answers).splitlines()[1:])
    assert one_line == ["plain", "8", "64", "1", "2,000", "1,000-4,000", "1.00", "32.00"]
    expected = ["plain", "8", "64", "2", "3,000", "3,000-3,000", "1.50", "21.33", "2.00", "2.0"]
    assert two_line == expected
