#!/usr/bin/env python3
"""Sorts perf's samples by what was being done; see scripts/profile-queries.

    count QUERY RUNS REPORT < samples   a line of JSON: median milliseconds, processor milliseconds of one run by kind
    table                   < lines     Markdown, slowest first

A stack is read from the inside; the first function that matches decides. Kernels of arrow, allocation and copying say nothing: who
called them does.
"""

import json
import re
import sys

KINDS = [
    ("planning", r"sqlparser::|datafusion_sql::|datafusion_optimizer::|physical_optimizer::|physical_planner::|datafusion_proto"
     r"|prost::|tessera_planner::|tessera_parser::|datafusion_distributed::(?!\S*(?:[Ss]tream|flight|arrow))|tessera_proto::(?:fragment|physical|pushdown|frugal)"
     r"|tessera_router::execute::(?:prepare|literals|scalars|arithmetic|averages)|datafusion_session|datafusion::execution::session_state"),
    ("network", r"arrow_ipc::|arrow_flight::|tonic::|h2::|hyper|tower|datafusion_distributed::|tokio::net|mio::|tcp_|__sys_(?:send|recv)|sock_|ep_poll|epoll"),
    ("decode", r"parquet::|zstd|lz4|ZSTD|snap::|storage::(?:column_reader|segment_reader|columns|checked_file)"),
    ("to the client", r"tessera_router::pg::"),
    ("compute", r"datafusion_physical_plan::|datafusion_physical_expr|datafusion_functions|tessera_shard_node::|tessera_proto::|datafusion_datasource"),
]
KINDS = [(name, re.compile(pattern)) for name, pattern in KINDS]
OTHER = "other"


def kind(stack):
    for function in stack:
        for name, pattern in KINDS:
            if pattern.search(function):
                return name
    return OTHER


def count(query, runs, report):
    nanoseconds, period, stack = {}, 0, []

    def end():
        if period:
            k = kind(stack)
            nanoseconds[k] = nanoseconds.get(k, 0) + period

    for line in sys.stdin:
        if not line.strip():
            end()
            period, stack = 0, []
        elif not line.startswith((" ", "\t")) or period == 0:
            fields = line.split()
            period = next((int(f.rstrip(":")) for f in fields[1:] if f.rstrip(":").isdigit()), 0)
        else:
            stack.append(line.split(None, 1)[1] if len(line.split(None, 1)) > 1 else "")
    end()
    measured = json.load(open(report))["report"]["queries"][0]
    # The runner warms up once more.
    each = {k: v / 1e6 / (int(runs) + 1) for k, v in nanoseconds.items()}
    print(json.dumps({"query": query, "ms": measured["median_ms"], "cpu": each}))


def table():
    rows = sorted((json.loads(line) for line in sys.stdin), key=lambda r: -r["ms"])
    names = [name for name, _ in KINDS] + [OTHER]
    print("| query | median ms | processor ms | " + " | ".join(names) + " |")
    print("|---" * (3 + len(names)) + "|")
    for row in rows:
        total = sum(row["cpu"].values()) or 1
        shares = " | ".join(f"{100 * row['cpu'].get(name, 0) / total:.0f} %" for name in names)
        print(f"| {row['query']} | {row['ms']:.0f} | {total:.0f} | {shares} |")


if sys.argv[1] == "count":
    count(*sys.argv[2:])
else:
    table()
