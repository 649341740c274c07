"""When no sweep begins: on battery and short of memory, by what the kernel shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from potatod.pausing import EVERY_S, Pausing, Supply, on_battery, stalled
from potatod.sections import Run
from potatod.sizes import Percent

BATTERY, FULL, MAINS, UNPLUGGED = Supply("Battery", status="Discharging"), Supply("Battery", status="Full"), Supply("Mains", "1"), Supply("Mains", "0")
PAGE = "some avg10={} avg60=0.08 avg300=0.01 total=62385\nfull avg10=99.00 avg60=0.00 avg300=0.00 total=51234\n"


@pytest.mark.parametrize(
    ("supplies", "verdict"),
    [
        ((), False),  # a machine that shows nothing, as most servers
        ((MAINS,), False),
        ((BATTERY,), True),
        ((UNPLUGGED, BATTERY), True),
        ((MAINS, BATTERY), False),  # more is taken than the mains give, and yet it is plugged in
        ((UNPLUGGED, Supply("USB", "1"), BATTERY), False),  # charged over USB-C
        ((UNPLUGGED, FULL), False),
        ((UNPLUGGED, FULL, BATTERY), True),  # the second of two
        ((Supply("UPS", "1", "Discharging"),), True),  # a power cut
        ((Supply("Battery", status="Discharging", scope="Device"),), False),  # the mouse's
        ((UNPLUGGED, Supply("Battery", status="Unknown")), False),
    ],
)
def test_a_machine_runs_on_battery_where_one_is_emptied_and_nothing_else_supplies_it(supplies: tuple[Supply, ...], verdict: bool) -> None:
    assert on_battery(supplies) is verdict


@pytest.mark.parametrize(
    ("page", "percent"),
    [
        (PAGE.format("12.50"), 12.5), (PAGE.format("100.00"), 100.0), (PAGE.format("0"), 0.0),
        ("", None), ("some avg60=1.0 ", None), ("some avg10=x ", None),
    ],
)  # fmt: skip
def test_pressure_is_the_share_of_the_last_ten_seconds_in_which_somebody_stood_still(page: str, percent: float | None) -> None:
    assert stalled(page) == percent


class Machine:
    """What the kernel shows, and who looks at it."""

    def __init__(self, root: Path, **run: object) -> None:
        self.root, self.now = root, 0.0
        self.pausing = Pausing(Run(**run), root)  # type: ignore[arg-type]

    def write(self, file: str, text: str) -> None:
        (self.root / file).parent.mkdir(parents=True, exist_ok=True)
        (self.root / file).write_text(text + "\n")

    def plugged(self, yes: bool) -> None:
        self.write("sys/class/power_supply/AC/type", "Mains")
        self.write("sys/class/power_supply/AC/online", str(int(yes)))
        self.write("sys/class/power_supply/BAT0/type", "Battery")
        self.write("sys/class/power_supply/BAT0/status", "Charging" if yes else "Discharging")

    def pressure(self, percent: float) -> None:
        self.write("proc/pressure/memory", PAGE.format(f"{percent:.2f}"))

    def look(self) -> tuple[bool, str]:
        self.now += EVERY_S
        return self.pausing.look(self.now), self.pausing.why


def test_on_battery_it_pauses_at_once_and_goes_on_when_it_has_been_plugged_in_for_two_looks(tmp_path: Path) -> None:
    machine = Machine(tmp_path, pause_on_battery=True)
    why = "this machine runs on battery"
    machine.plugged(True)
    assert machine.look() == (False, "")
    machine.plugged(False)
    assert [machine.look(), machine.look()] == [(True, why), (False, why)]
    machine.plugged(True)
    assert machine.look() == (False, why)
    machine.plugged(False)  # a plug that is loose
    assert machine.look() == (False, why)
    machine.plugged(True)
    assert [machine.look(), machine.look(), machine.look()] == [(False, why), (True, ""), (False, "")]


def test_it_pauses_at_the_share_that_is_said_and_goes_on_below_half_of_it(tmp_path: Path) -> None:
    machine = Machine(tmp_path, pause_on_pressure=Percent(20))
    why, seen = "this machine is short of memory", []
    for percent in (19.9, 20.0, 10.0, 9.9, 10.0, 9.9, 9.9, 19.9):
        machine.pressure(percent)
        seen.append(machine.look())
    assert seen == [(False, ""), (True, why), (False, why), (False, why), (False, why), (False, why), (True, ""), (False, "")]


def test_it_looks_only_every_few_seconds(tmp_path: Path) -> None:
    machine = Machine(tmp_path, pause_on_battery=True)
    machine.plugged(True)
    machine.look()
    machine.plugged(False)
    assert not machine.pausing.look(machine.now + EVERY_S - 0.01)
    assert machine.pausing.look(machine.now + EVERY_S)


def test_what_nobody_asked_for_pauses_nothing_and_other_settings_hold_at_once(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.plugged(False)
    machine.pressure(100)
    assert machine.look() == (False, "")
    machine.pausing.heed(Run(pause_on_battery=True))
    assert machine.pausing.look(machine.now + 0.1)
    assert machine.pausing.why == "this machine runs on battery"
    machine.pausing.heed(Run(pause_on_pressure=Percent(100)))
    machine.pausing.look(machine.now + 0.2)
    assert machine.pausing.why == "this machine is short of memory"


def test_where_the_kernel_shows_nothing_it_goes_on(tmp_path: Path) -> None:
    machine = Machine(tmp_path, pause_on_battery=True, pause_on_pressure=Percent(1))
    assert machine.look() == (False, "")
    (tmp_path / "sys/class/power_supply/BAT0/type").mkdir(parents=True)  # unreadable
    assert machine.look() == (False, "")


def test_in_a_container_the_pressure_is_the_control_groups(tmp_path: Path) -> None:
    machine = Machine(tmp_path, pause_on_pressure=Percent(20))
    machine.write("proc/self/cgroup", "0::/potato")
    machine.write("sys/fs/cgroup/potato/memory.pressure", PAGE.format("50.00"))
    assert machine.look() == (True, "this machine is short of memory")
