"""Drives a machine over QMP with a client that is not ours (qemu.qmp).

drive.py SOCKET SCENARIO: the machine was started with -S, and its guest waits for the power button
or has panicked. Every answer and event is checked; what is wrong ends the program with a traceback.
"""

import asyncio
import sys
from pathlib import Path

from qemu.qmp import ExecuteError, QMPClient

# Far above what any machine takes; only a hang is longer.
PATIENCE_S = 60


async def event(client, name):
    """The next event, which must be this one; its data."""
    message = await asyncio.wait_for(client.events.get(), PATIENCE_S)
    assert message["event"] == name, (name, message)
    assert message["timestamp"]["seconds"] > 1_600_000_000, message
    return message.get("data")


async def status(client, expected):
    answer = await client.execute("query-status")
    assert answer["status"] == expected, answer
    assert answer["running"] == (expected == "running"), answer


async def check_queries(client):
    version = await client.execute("query-version")
    assert version["package"].startswith("microvm "), version
    assert await client.execute("query-name") == {"name": "driven"}
    assert await client.execute("query-kvm") == {"enabled": True, "present": True}
    assert await client.execute("query-block") == []
    chardevs = await client.execute("query-chardev")
    assert chardevs[0]["label"] == "serial0", chardevs
    commands = {entry["name"] for entry in await client.execute("query-commands")}
    assert {"stop", "cont", "system_reset", "system_powerdown", "quit"} <= commands, commands
    devices = await client.execute("qom-list", {"path": "/machine/peripheral-anon"})
    assert any(device["type"] == "child<isa-debug-exit>" for device in devices), devices
    for command, kind in [("frobnicate", "CommandNotFound"), ("query-pci", "GenericError")]:
        try:
            await client.execute(command)
        except ExecuteError as error:
            assert error.error_class == kind, error
        else:
            raise AssertionError(f"{command} was executed")


async def asleep(client):
    """Returns once no CPU's thread runs: each is S, asleep (proc(5)). One that has just stopped may
    have a few instructions to go."""

    async def look():
        while await threads(client) != ["S", "S"]:
            pass

    await asyncio.wait_for(look(), PATIENCE_S)


async def threads(client):
    cpus = await client.execute("query-cpus-fast")
    assert [cpu["cpu-index"] for cpu in cpus] == [0, 1], cpus
    stats = [next(Path("/proc").glob(f"[0-9]*/task/{cpu['thread-id']}/stat")) for cpu in cpus]
    return [stat.read_text().rpartition(")")[2].split()[0] for stat in stats]


async def life(client):
    """Start, stop, go on, reset, power button."""
    await status(client, "prelaunch")
    await check_queries(client)
    await asleep(client)
    await client.execute("cont")
    await event(client, "RESUME")
    await status(client, "running")
    await client.execute("stop")
    await event(client, "STOP")
    await status(client, "paused")
    await asleep(client)
    await client.execute("system_reset")
    assert await event(client, "RESET") == {"guest": False, "reason": "host-qmp-system-reset"}
    await status(client, "paused")
    await client.execute("cont")
    await event(client, "RESUME")
    await client.execute("system_powerdown")
    await event(client, "POWERDOWN")
    assert await event(client, "SHUTDOWN") == {"guest": True, "reason": "guest-shutdown"}


async def rest(client):
    """-no-shutdown: what is off can be reset, and only that."""
    await client.execute("cont")
    await event(client, "RESUME")
    assert await event(client, "SHUTDOWN") == {"guest": True, "reason": "guest-shutdown"}
    await event(client, "STOP")
    await status(client, "shutdown")
    try:
        await client.execute("cont")
    except ExecuteError as error:
        assert error.error_class == "GenericError", error
    else:
        raise AssertionError("a machine that is off went on")
    await client.execute("system_reset")
    assert await event(client, "RESET") == {"guest": False, "reason": "host-qmp-system-reset"}
    await event(client, "SHUTDOWN")
    await event(client, "STOP")
    await quit_by_command(client)


async def panic(client):
    """-action panic=pause: what panicked can be looked at."""
    await client.execute("cont")
    await event(client, "RESUME")
    assert await event(client, "GUEST_PANICKED") == {"action": "pause"}
    await event(client, "STOP")
    await status(client, "guest-panicked")
    await quit_by_command(client)


async def quit_by_command(client):
    await client.execute("quit")
    assert await event(client, "SHUTDOWN") == {"guest": False, "reason": "host-qmp-quit"}


async def main(path, scenario):
    client = QMPClient("drive")
    await asyncio.wait_for(client.connect(path), PATIENCE_S)
    assert client.greeting.QMP.version["package"].startswith("microvm "), client.greeting
    await {"life": life, "rest": rest, "panic": panic, "quit": quit_by_command}[scenario](client)
    # The machine is gone, and has closed the connection.
    try:
        await asyncio.wait_for(client.disconnect(), PATIENCE_S)
    except EOFError:
        pass


asyncio.run(main(*sys.argv[1:]))
