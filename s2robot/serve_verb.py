"""The verbs `serve`, `bench serve` and `bench soak`."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console

from s2robot import command, progress
from s2robot import config as configuration
from s2robot.parser import json_option


def do_serve(argv: Sequence[str]) -> int:
    from s2robot.adapters import serve, serve_access, serve_policy

    parser = command.parser(
        "serve",
        "Serve a policy over a websocket; openpi-client talks to it unchanged. Ctrl-C: finish, say goodbye.",
        "s2robot serve runs/lift-bc --port 8000",
        ", ".join(f"--{name}" for name in configuration.keys(serve.ServeConfig)),
    )
    parser.add_argument("run", help="a run folder that holds policy/, or a policy's folder such as RUN/best")
    parser.add_argument(
        "--token-file",
        default=None,
        help=f"a file with the token clients must send (default: ${serve_access.VARIABLE})",
    )
    parser.add_argument(
        "--without-token", action="store_true", help="let anyone in, also where other machines reach --host"
    )
    json_option(parser, "say what is served as one line of JSON")
    options, rest = command.parse(parser, argv)
    config = configuration.load(serve.ServeConfig, None, rest)
    token = serve_access.read_token(options.token_file)
    serve_access.check_host(config.host, token, options.without_token)
    serve.check_packages()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # while it loads both are told alike
    try:
        policy, interface = serve_policy.load(
            options.run, engine=config.engine, precision=config.precision, execute=config.execute
        )
    except KeyboardInterrupt:
        Console(stderr=True).print("Stopped before it served")
        return 0
    finally:
        signal.signal(signal.SIGTERM, before)
    server = serve.PolicyServer(policy, interface, config, token)

    def ready(url: str) -> None:
        said = {"url": url, **interface.metadata}
        print(json.dumps(said) if options.json else _welcome(options.run, said), flush=True)

    asyncio.run(_until_told(server, ready))
    return 0


async def _until_told(server: Any, ready: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; a second one ends it at once."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM)

    def stop() -> None:
        for number in numbers:
            loop.remove_signal_handler(number)
        server.stop()

    for number in numbers:
        loop.add_signal_handler(number, stop)
    await server.run(ready)


def _welcome(run: str, said: dict[str, Any]) -> str:
    url, encoder = said["url"], said["encoder"]
    host, _, port = url.removeprefix("ws://").rpartition(":")
    height, width = said["frame"]
    keys = [f"'observation/{camera}': uint8 ({height}, {width}, 3)" for camera in said["cameras"]]
    keys += [f"'observation/state': ({said['proprioception']},)"]
    keys += ["'prompt': text"] if said["goal_names"] else [f"'goal': ({said['goal']},)"] if said["goal"] else []
    return (
        f"Serving {run} ({said['policy']}, {said['task'] or 'no named task'}) at {url},"
        f" {encoder['engine'] if encoder else 'torch fp32'}. Stop: Ctrl-C\n"
        f"openpi-client: WebsocketClientPolicy({host!r}, {port}).infer({{{', '.join(keys)}}})['actions']\n"
        f"s2robot:       s2robot.RemotePolicy({url!r}).act(observation)\n"
        f"health:        curl http://{host}:{port}/healthz"
    )


def bench_serve(argv: Sequence[str]) -> int:
    from s2robot import bench_serve as bench
    from s2robot.soak import ServeBenchConfig

    parser = command.parser(
        "bench serve",
        "Press a server of its own: every answer against the policy in process, malformed messages in between.",
        "s2robot bench serve runs/lift-bc --clients 8 --seconds 120 --malformed 1000 --json",
        ", ".join(f"--{name}" for name in configuration.keys(ServeBenchConfig) if name != "run"),
    )
    parser.add_argument("run", help="a run folder that holds policy/")
    json_option(parser)
    options, rest = command.parse(parser, argv)
    config = configuration.load(ServeBenchConfig, None, command.first_word("run", options.run, rest))
    console = Console(stderr=options.json)
    with progress.bar("soak", console) as told:
        result = bench.bench_serve(config, told)
    if options.json:
        command.tell_json(result)
    else:
        console.print(_told(result), highlight=False, markup=False, soft_wrap=True)
    return 0 if result["passed"] else 1


def _told(result: dict[str, Any]) -> str:
    soak, single, rss = result["soak"], result["single_client"], result["soak"]["rss_mb"]
    latency = soak["latency_ms"] or {"p50": float("nan"), "p99": float("nan")}
    lines = [
        f"{'passed' if result['passed'] else 'FAILED'}: {soak['answers']} answers, {soak['wrong']} wrong (largest"
        f" difference {soak['worst_difference']:.1e}); {soak['malformed']} malformed messages, {soak['unrefused']} not"
        f" refused; exit code {result['exit_code']}",
        f"{len(soak['answers_by_client'])} clients: {soak['answers_hz']:.1f} answers/s, p50"
        f" {latency['p50']:.1f} ms, p99 {latency['p99']:.1f} ms",
        f"one client: in process p50 {single['in_process_ms']['p50']:.1f} ms, served {single['served_ms']['p50']:.1f};"
        f" the wire costs {single['overhead_ms']['p50']:.2f} ms (median of pairs)",
        f"memory: {rss['first']:.0f} MB at first, {rss['largest']:.0f} at most, {rss['last']:.0f} at the end",
    ]
    return "\n".join([*lines, *soak["faults"][:10]])


def bench_soak(argv: Sequence[str]) -> int:
    from s2robot import bench_soak as bench

    parser = command.parser(
        "bench soak",
        "A policy server, a ROS 2 node and vector rollouts together: does memory grow, does latency, what fails?",
        "s2robot bench soak runs/lift-bc --minutes 30 --ros2_python .venvs/ros2/bin/python",
        ", ".join(f"--{name}" for name in configuration.keys(bench.SoakConfig) if name != "run"),
    )
    parser.add_argument("run", help="a run folder that holds policy/")
    json_option(parser)
    options, rest = command.parse(parser, argv)
    config = configuration.load(bench.SoakConfig, None, command.first_word("run", options.run, rest))
    console = Console(stderr=options.json)
    with progress.bar("soak", console) as told:
        result = bench.bench_soak(config, told)
    if options.json:
        command.tell_json(result)
    else:
        print(bench.as_table(result))
    return 0 if result["passed"] else 1
