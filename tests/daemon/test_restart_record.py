"""What a start makes of the record that the life before has left, whole or not."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from netd.record import Record
from netd.specs import ForwardSpec, Lifeline, NetworkSpec
from tests.lab import Netns, World, no_link, until

from .restarts import Start, answers, works
from .service_manager import ServiceManager

# -- the record -----------------------------------------------------------------------------------------------------


def rewritten(manager: ServiceManager, change: Callable[[dict[str, Any]], Any]) -> None:
    """The record in the store, as somebody else might have written it."""
    [fd] = [fd for name, fd in manager.store if name == "state"]
    record = Record(fd)
    content = record.read()
    assert content is not None
    changed = change(content)
    record.write(content if changed is None else changed)


def without_record(manager: ServiceManager) -> None:
    manager._drop([entry for entry in manager.store if entry[0] == "state"])


def unknown_format(manager: ServiceManager) -> None:
    rewritten(manager, lambda content: {**content, "format": 99})


def garbage(manager: ServiceManager) -> None:
    [fd] = [fd for name, fd in manager.store if name == "state"]
    os.pwrite(fd, os.urandom(5000), 0)
    os.pwrite(fd, os.urandom(5000), 64 << 20)


def another_kind(manager: ServiceManager) -> None:
    without_record(manager)
    reading, writing = os.pipe()
    os.close(reading)
    manager.store.append(("state", writing))


@pytest.mark.parametrize("damage", [without_record, unknown_format, garbage, another_kind])
async def test_without_a_readable_record_the_start_is_cold(
    world: World, manager: ServiceManager, start: Start, damage: Callable[[ServiceManager], None]
) -> None:
    daemon = await start()
    guest = world.guest()
    network = await daemon.attach(NetworkSpec(name="web"), os.dup(guest.fd), Lifeline("explicit"))
    network.add_forward(ForwardSpec("tcp", 0, 80), "api")
    daemon.changed(network)
    await start.stop()  # type: ignore[attr-defined]
    manager.settle()
    damage(manager)
    daemon = await start()
    assert daemon.networks == {}
    await until(lambda: manager.names() == [])
    await no_link(guest)  # its last descriptor was the store's
    network = await daemon.attach(NetworkSpec(name="web"), os.dup(guest.fd), Lifeline("explicit"))
    await until(lambda: manager.names() == [f"{network.id}.tap", "state"])


async def test_nonsense_in_one_entry_costs_at_most_its_network(
    world: World, manager: ServiceManager, start: Start
) -> None:
    """A record that is whole, and was written by somebody else."""
    changes: dict[str, Callable[[dict[str, Any]], Any]] = {
        "no forwards": lambda e: e.pop("forwards"),
        "half a forward": lambda e: e.update(forwards=[{"id": 1}]),
        "forwards that are none": lambda e: e.update(forwards=9),
        "no next number": lambda e: e.pop("next_forward_id"),
        "held that is none": lambda e: e.update(held=3),
        "held that is not there": lambda e: e.update(held=["exit_fd"]),
        "no tap": lambda e: e.update(tap={}),
        "no mac": lambda e: e["tap"].update(mac="??"),
        "no address": lambda e: e["spec"].update(gateway_ip="nowhere"),
        "a later spec": lambda e: e["spec"].update(speed="of a later netd"),
        "no lifeline": lambda e: e.update(lifeline=None),
        "a strange lifeline": lambda e: e["lifeline"].update(kind="prayer"),
        "an earlier spec": lambda e: e["spec"].pop("mtu"),
        "nothing": lambda e: None,
    }
    kept = {"an earlier spec", "nothing"}
    daemon = await start()
    guests, writers = {}, []
    for name in changes:
        reading, writing = os.pipe()
        writers.append(writing)
        guests[name] = Netns.bare()
        spec = NetworkSpec(name=name)
        network = await daemon.attach(spec, os.dup(guests[name].fd), Lifeline("exit_fd", reading))
        network.add_forward(ForwardSpec("tcp", 0, 80), "api")
        daemon.changed(network)
    await start.stop()  # type: ignore[attr-defined]
    manager.settle()

    def damage(content: dict[str, Any]) -> None:
        for entry in content["networks"]:
            changes[entry["spec"]["name"]](entry)

    rewritten(manager, damage)
    daemon = await start()
    assert {n.name for n in daemon.networks.values()} == kept
    expected = {f"{n.id}.{key}" for n in daemon.networks.values() for key in ("tap", "life", "port-1")} | {"state"}
    await until(lambda: set(manager.names()) == expected)
    for name, guest in guests.items():
        if name in kept:
            await works(world, guest)
            await answers(world, guest, daemon.network(name), 1)
        else:
            await no_link(guest)
            await daemon.attach(NetworkSpec(name=name), os.dup(guest.fd), Lifeline("explicit"))
    for writing in writers:
        os.close(writing)
    await until(lambda: not kept & {n.name for n in daemon.networks.values()})
    assert len(daemon.networks) == len(changes) - len(kept)
    await start.stop()  # type: ignore[attr-defined]
    for guest in guests.values():
        guest.close()


NONSENSE: list[Callable[[dict[str, Any]], Any]] = [
    lambda c: c.update(networks=7),
    lambda c: c.update(networks={"id": 1}),
    lambda c: c.pop("networks"),
    lambda c: c["networks"].append(7),
    lambda c: c["networks"].insert(0, None),
    lambda c: c["networks"].append({}),
    lambda c: c["networks"].append(c["networks"][0]),
]


@pytest.mark.parametrize("change", NONSENSE, ids=range(len(NONSENSE)))
async def test_nonsense_in_place_of_the_entries(
    world: World, manager: ServiceManager, start: Start, change: Callable[[dict[str, Any]], Any]
) -> None:
    daemon = await start()
    guest = world.guest()
    network = await daemon.attach(NetworkSpec(name="web"), os.dup(guest.fd), Lifeline("explicit"))
    await start.stop()  # type: ignore[attr-defined]
    manager.settle()
    rewritten(manager, lambda content: change(content) and None)
    daemon = await start()
    if daemon.networks:
        assert list(daemon.networks) == [network.id]
        await works(world, guest)
    else:
        assert manager.names() == ["state"]
        await no_link(guest)
