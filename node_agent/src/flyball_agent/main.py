"""Entry point of `flyball-agent`: reads its arguments and puts the process together."""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import gc
import logging
import os
import random
import signal
import sys
import time
import uuid
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import structlog

from flyball_agent.agent import Agent, AgentSettings, Signals, Surroundings
from flyball_agent.controllers.registry import make_controller
from flyball_agent.engines import EngineScraper, scrape_session, tell_limits
from flyball_agent.exposition import AgentCollector, AgentCounts
from flyball_agent.facts import Engine, EngineState
from flyball_agent.files import ProfileFolder, StateFile, boot_id
from flyball_agent.knobs import EngineCommand
from flyball_agent.node import NodeControl
from flyball_agent.web import Pages, serve
from flyball_api.kube import CONFIGMAPS, NODE_ENERGY_PLANS, CredentialError, JsonObject, KubeApi
from flyball_api.lease import Heartbeat
from flyball_api.names import SWITCH_CONFIG_MAP, SWITCH_KEY, agent_lease_name
from flyball_api.nodeenergyplan import NodeEnergyPlan
from flyball_api.reflector import Reflector

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the agent until TERM.

    Returns:
        0 after an orderly end, 1 when it cannot go on.
    """
    options = _parser().parse_args(arguments)
    _log_as(options.log_format)
    log = structlog.get_logger("flyball.agent")
    try:
        asyncio.run(_run(options))
    except (CredentialError, OSError) as error:
        log.error("agent cannot run", error=str(error))
        return 1
    except BaseExceptionGroup as group:
        log.error("agent ends", errors=[f"{type(each).__name__}: {each}" for each in group.exceptions])
        return 1
    return 0


async def _run(options: argparse.Namespace) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    session = uuid.uuid4().hex
    log = structlog.get_logger("flyball.agent").bind(node=options.node_name, session=session)
    control = NodeControl(session, make_controller, time.monotonic)
    counts, signals = AgentCounts(), Signals()
    async with AsyncExitStack() as stack:
        kube = await stack.enter_async_context(
            await KubeApi.from_environment(
                options.kubeconfig, options.service_account_dir, os.environ, user_agent="flyball-agent"
            )
        )
        http = await stack.enter_async_context(scrape_session())

        def on_page(engine: Engine, state: EngineState) -> None:
            agent.on_page(engine, state)

        async def tell(command: EngineCommand) -> str:
            return await tell_limits(http, command)

        scraper = EngineScraper(http, time.monotonic, random.uniform, on_page)
        stack.push_async_callback(scraper.close)
        settings = AgentSettings(
            options.node_name,
            options.actuator_socket,
            options.podresources_socket,
            version("flyball-agent"),
            boot_id(),
        )
        agent = Agent(
            settings,
            control,
            around=Surroundings(scraper, tell, ProfileFolder(options.profiles_dir), StateFile(options.state_file)),
            kube=kube,
            counts=counts,
            signals=signals,
            clock=time.monotonic,
            utc_now=lambda: datetime.now(UTC),
            sleep=asyncio.sleep,
            uniform=random.uniform,
        )
        collector = AgentCollector(control, scraper, counts, time.monotonic)
        pages = Pages(collector.page, control.explain, agent.unhealthy, agent.unready)
        web = await serve(options.bind_address, options.port, pages)
        stack.push_async_callback(web.cleanup)
        stack.push_async_callback(agent.farewell)
        agent.recall()
        plans = Reflector(
            kube,
            NODE_ENERGY_PLANS,
            _plan_of,
            on_change=lambda _key, _old, plan: agent.on_plan(plan),
            field_selector=f"metadata.name={options.node_name}",
        )
        switches = Reflector(
            kube,
            CONFIGMAPS,
            _switch_of,
            on_change=lambda _key, _old, said: agent.on_switch(said),
            namespace=options.namespace,
            field_selector=f"metadata.name={SWITCH_CONFIG_MAP}",
        )
        heartbeat = Heartbeat(kube, options.namespace, agent_lease_name(options.node_name), session)

        async def read_switch() -> None:
            await switches.wait_synced()
            if not switches.store:  # its absence means enabled, but only once it is known to be absent
                agent.on_switch(None)

        _trim()
        log.info("agent runs")
        loops = (plans.run, switches.run, read_switch, heartbeat.run, agent.keep_control)
        more = (agent.follow_allocation, agent.tell_status, agent.follow_profiles, agent.keep_states)
        await _until(stop, [loop() for loop in (*loops, *more)])
        log.info("agent ends: the actuator resets clock locks, caps stay")


def _plan_of(item: JsonObject) -> NodeEnergyPlan:
    """The plan without its status, which is our own and would have each of our writes look like news."""
    session = (item.get("status") or {}).get("agentSession", "")
    metadata = {"name": item["metadata"]["name"], "uid": item["metadata"].get("uid", "")}
    return NodeEnergyPlan.model_validate(
        {"metadata": metadata, "spec": item["spec"], "status": {"agentSession": session}}
    )


def _switch_of(config_map: JsonObject) -> str:
    """What the switch says; saying nothing means enabled."""
    said: str = (config_map.get("data") or {}).get(SWITCH_KEY) or "enabled"
    return said


async def _until(stop: asyncio.Event, loops: Sequence[Coroutine[Any, Any, Any]]) -> None:
    """Run the loops until `stop`; a loop that fails ends all, as an exception group."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(loop) for loop in loops]
        await stop.wait()
        for task in tasks:
            task.cancel()


def _trim() -> None:
    """Give back what imports and compiling took."""
    gc.collect()
    gc.freeze()
    with suppress(AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def _log_as(form: str) -> None:
    renderer: Any = structlog.processors.JSONRenderer() if form == "json" else structlog.dev.ConsoleRenderer()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="flyball-agent", description="Drives the GPUs of one node after its plan.")
    add = parser.add_argument
    add("--node-name", required=True, help="name of this Node, and of its NodeEnergyPlan")
    add("--namespace", default="flyball-system", help="Flyball's namespace (default: %(default)s)")
    add(
        "--bind-address",
        default="0.0.0.0",
        help="address of /metrics, /explain, /healthz, /readyz (default: %(default)s)",
    )
    add("--port", type=int, default=9402, help="their port (default: %(default)s)")
    add("--actuator-socket", type=Path, default=Path("/run/flyball/actuator.sock"), help="default: %(default)s")
    add("--podresources-socket", type=Path, default=Path("/run/flyball/podresources.sock"), help="default: %(default)s")
    add("--profiles-dir", type=Path, default=Path("/etc/flyball/profiles"), help="profiles (default: %(default)s)")
    add("--state-file", type=Path, help="where controllers' states are kept over a restart; nowhere if not given")
    add("--kubeconfig", type=Path, help="kubeconfig, outside a pod")
    add("--service-account-dir", type=Path, default=SERVICE_ACCOUNT, help="default: %(default)s")
    add("--log-format", choices=("json", "console"), default="json", help="default: %(default)s")
    return parser


if __name__ == "__main__":
    sys.exit(main())
